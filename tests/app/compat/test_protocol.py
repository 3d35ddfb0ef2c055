"""What the protocols share."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from app.compat import protocol
from app.main import create_app
from app.settings import Settings
from tests.app.compat.conftest import GREEN, KEY
from tests.app.fakes import FakeEngine

URL = "data:image/jpeg;base64," + base64.b64encode(GREEN).decode()


def _says(told: Any, name: str) -> str:
    """What an error of this protocol says, from where its clients look."""
    said: str = told["error"]["message"] if name in ("openai", "azure") else told["error"]
    return said


@pytest.mark.parametrize(
    ("name", "method", "path", "status"),
    [
        ("openai", "POST", "/v1/embeddings", 404),
        ("openai", "GET", "/v1/chat/completions", 405),
        ("ollama", "POST", "/api/pull", 404),
        ("photoprism", "POST", "/api/v1/vision/nsfw", 404),
        ("azure", "POST", "/computervision/retrieval:vectorizeImage", 404),
        ("oip", "GET", "/v2/models/fake/config", 404),
        ("huggingface", "GET", "/models/fake", 405),
    ],
)
def test_what_is_not_done_here_is_an_error_of_the_protocol(
    url: str, name: str, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, url + path, headers={"X-API-Key": KEY})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert f"{method} {path} is not among what can be done here" in _says(answer.json(), name)
    assert (answer.headers.get("allow") is not None) == (status == 405)


def test_elsewhere_and_where_a_protocol_is_switched_off_it_is_a_problem() -> None:
    with TestClient(create_app(Settings(compat="openai"), FakeEngine())) as client:  # type: ignore[arg-type]
        for path in ("/nowhere", "/api/pull", "/v2"):
            assert client.post(path).headers["content-type"] == "application/problem+json"


def test_labels_are_the_tags(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "tags", lambda answer: [("dog", 0.75), ("ball", 0.5)])
    labels = client.post("/api/v1/vision/labels", json={"images": [URL]}).json()["result"]["labels"]
    assert [(one["name"], one["confidence"]) for one in labels] == [("dog", 0.75), ("ball", 0.5)]
    azure = client.post("/computervision/imageanalysis:analyze?features=tags", content=GREEN).json()
    assert azure["tagsResult"]["values"][0] == {"name": "dog", "confidence": 0.75}
