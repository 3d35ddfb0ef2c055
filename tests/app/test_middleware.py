from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.middleware import SECURITY_HEADERS
from app.settings import Settings
from tests.app.fakes import FakeEngine
from tests.app.pictures import plain


@pytest.mark.parametrize("given", ["abc-1.2_3", "A" * 128])
def test_a_request_id_is_taken_and_echoed(client: TestClient, given: str) -> None:
    assert client.get("/health/live", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "a\tb", "a;b", "<script>"])
def test_a_strange_request_id_is_replaced(client: TestClient, given: str) -> None:
    made = client.get("/health/live", headers={"X-Request-ID": given}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)


def test_every_request_gets_its_own_id(client: TestClient) -> None:
    assert len({client.get("/health/live").headers["x-request-id"] for _ in range(9)}) == 9


@pytest.mark.parametrize("path", ["/", "/health/live", "/model", "/nowhere", "/caption", "/static/style.css"])
def test_every_answer_has_the_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert {name: headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "server" not in headers


def test_errors_of_the_framework_are_problems_too(client: TestClient) -> None:
    for answer, status in ((client.get("/nowhere"), 404), (client.get("/caption"), 405), (client.post("/model"), 405)):
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert client.get("/caption").headers["allow"] == "POST"


def test_an_unexpected_error_is_a_problem_that_tells_nothing(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.app.state.service = None  # type: ignore[attr-defined]
    answer = client.get("/model")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "NoneType" not in answer.text
    assert "NoneType" in caplog.text


def test_the_access_log_has_no_secrets_and_no_pictures(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    picture = plain((1, 2, 3))
    with TestClient(create_app(Settings(api_keys="top-secret"), engine)) as client:  # type: ignore[arg-type]
        for key in ("top-secret", "wrong-secret"):
            client.post(
                "/caption?seed=424242", files={"image": ("my-holiday.png", picture)}, headers={"X-API-Key": key}
            )
            client.get("/model", headers={"Authorization": f"Bearer {key}"})
    records = [r for r in caplog.records if r.name == "app.access"]
    assert [r.fields["status"] for r in records] == [200, 200, 401, 401]  # type: ignore[attr-defined]
    ours = [r for r in caplog.records if not r.name.startswith("httpx")]  # the test client logs too
    everything = json.dumps([{**vars(r), "text": r.getMessage()} for r in ours], default=repr)
    for secret in ("top-secret", "wrong-secret", "my-holiday", "424242", "PNG\\r\\n"):
        assert secret not in everything


def test_a_line_of_the_access_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.access")
    client.post("/caption", files={"image": b"text"}, headers={"X-Request-ID": "abc"})
    fields: dict[str, Any] = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert fields["ms"] > 0
    del fields["ms"], fields["bytes_out"]
    assert fields == {
        "request_id": "abc",
        "client": "testclient",
        "method": "POST",
        "path": "/caption",
        "status": 415,
        "code": "unsupported_media_type",
    }
