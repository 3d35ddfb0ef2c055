from __future__ import annotations

from starlette.testclient import TestClient

from app.errors import ClientGone, ServiceError, problem
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine


def test_errors_of_the_framework_are_problems_too(client: TestClient) -> None:
    for answer, status in ((client.get("/nowhere"), 404), (client.get("/caption"), 405), (client.post("/model"), 405)):
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert client.get("/caption").headers["allow"] == "POST"


def test_every_status_of_the_service_is_documented() -> None:
    document = create_app(Settings(), FakeEngine()).openapi()
    paths = document["paths"]
    ours = {str(error.status) for error in ServiceError.__subclasses__() if error is not ClientGone}
    for path in ("/caption", "/captions"):
        documented = paths[path]["post"]["responses"]
        assert set(documented) == ours | {"200", "500"}
        for status in ours:
            [(content_type, content)] = documented[status]["content"].items()
            assert content_type == "application/problem+json"
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert set(document["components"]["schemas"]["Problem"]["required"]) == set(problem(404, "x", "y", "z"))
