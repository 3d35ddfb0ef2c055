from __future__ import annotations

from collections.abc import Iterator

import httpx
import ollama
import pytest

from app import __version__
from tests.app.compat.conftest import KEY


@pytest.fixture
def client(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def test_models_are_told(client: ollama.Client, url: str) -> None:
    [model] = client.list().models
    assert model.model == "fake:latest"
    assert len(model.digest or "") == 64
    assert [one.model for one in client.ps().models] == ["fake:latest"]
    shown = client.show("fake")
    assert shown.capabilities == ["completion", "vision"]
    assert "ignored" in (shown.template or "")
    assert client.generate("fake").done_reason == "load"  # how clients warm a model up
    assert client.chat("fake").done_reason == "load"
    version = httpx.get(f"{url}/api/version", headers={"X-API-Key": KEY}).json()
    assert version == {"version": __version__}
