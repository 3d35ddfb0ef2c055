"""A live service on loopback, for other services' own clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.settings import Settings
from tests.app.fakes import FakeEngine, FakeGuard
from tests.page.live import serving
from tests.pictures import plain

KEY = "secret-key"
GREEN = plain((16, 200, 40), "JPEG")
CAPTION = "Green light blue beam3 0."  # of it, by the fake engine


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    """The service, which wants a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.serving.service.Guard", FakeGuard)
        with serving(FakeEngine(), Settings(drain_delay=0, api_keys=KEY)) as url:  # type: ignore[arg-type]
            yield url


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
