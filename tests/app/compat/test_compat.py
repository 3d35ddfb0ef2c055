"""The protocols together: their modules are imported when they are used, and refuse what they have not alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import compile_path
from starlette.testclient import TestClient

from app.compat import PATHS
from app.main import create_app
from app.settings import PROTOCOLS, Settings
from tests.app.compat.conftest import CAPTION, GREEN, KEY
from tests.app.fakes import FakeEngine

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_route_is_where_a_request_looks_for_it(name: str) -> None:
    places = [compile_path(path)[0] for path in PATHS[name]]
    app = create_app(Settings(compat=name), FakeEngine())  # type: ignore[arg-type]
    ours = create_app(Settings(compat="none"), FakeEngine()).openapi()["paths"]  # type: ignore[arg-type]
    theirs = app.openapi()["paths"].keys() - ours
    assert theirs
    assert [path for path in theirs if not any(place.match(path) for place in places)] == []


def test_a_protocol_is_imported_for_its_first_request_and_no_other() -> None:
    code = (
        "import sys; from starlette.testclient import TestClient; from app.main import create_app;"
        "from app.settings import Settings; from tests.app.fakes import FakeEngine\n"
        "def there(): return sorted(m for m in sys.modules if m.startswith('app.compat.'))\n"
        "with TestClient(create_app(Settings(), FakeEngine())) as client:\n"
        "    for path in ('/', '/model', '/health/ready', '/nowhere'): client.get(path)\n"
        "    print(there()); client.get('/v1/models'); print(there())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "['app.compat.openai', 'app.compat.protocol']"]


def test_the_first_request_is_answered_as_the_second_is() -> None:
    with TestClient(create_app(Settings(), FakeEngine())) as client:
        answers = [client.post("/", content=GREEN, headers={"Content-Type": "image/jpeg"}).json() for _ in range(2)]
        assert answers == [[{"generated_text": CAPTION}]] * 2
        assert client.get("/").headers["content-type"].startswith("text/html")


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
