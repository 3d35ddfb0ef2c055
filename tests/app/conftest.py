from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine, FakeGuard
from tests.app.live import ROOT, Start, starting


@pytest.fixture(autouse=True)
def _decoding_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares most tests the start of processes; test_guard.py and live servers have the real ones."""
    monkeypatch.setattr("app.serving.service.Guard", FakeGuard)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def settings() -> Settings:
    return Settings(
        max_upload_mb=1, max_batch_mb=2, upload_memory_mb=8, max_images=4, queue_size=8, max_pixels=1_000_000
    )


@pytest.fixture
def client(settings: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    with TestClient(create_app(settings, engine)) as client:
        yield client


@pytest.fixture
def start() -> Iterator[Start]:
    with starting() as start:
        yield start


@pytest.fixture(scope="session")
def sample() -> bytes:
    """The picture of our own making that ships with the page."""
    return (ROOT / "app" / "static" / "sample.jpg").read_bytes()
