"""The protocols together: their modules are imported when they are used, and refuse what they have not alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from starlette.routing import compile_path
from starlette.testclient import TestClient

from app.compat import PATHS
from app.main import create_app
from app.settings import PROTOCOLS, Settings
from tests.app.compat.conftest import CAPTION, GREEN
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
