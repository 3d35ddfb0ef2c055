from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.serving.middleware import SECURITY_HEADERS
from app.settings import Settings
from tests.app.fakes import FakeEngine
from tests.pictures import plain


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


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_trace_is_taken_up_passed_on_and_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.access")
    answer = client.get("/health/live", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    version, trace, span, flags = answer.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert re.fullmatch("[0-9a-f]{16}", span)
    fields: dict[str, Any] = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert (fields["trace_id"], fields["parent_id"], fields["span_id"]) == (TRACE, "00f067aa0ba902b7", span)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "x",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-00f067aa0ba902b7-01-more",
    ],
)
def test_what_is_no_trace_is_ignored(client: TestClient, given: str) -> None:
    answer = client.get("/health/live", headers={"traceparent": given})
    assert answer.status_code == 200
    assert "traceparent" not in answer.headers


def hosts(client: TestClient, *names: str) -> list[int]:
    return [client.get("/health/live", headers={"Host": name}).status_code for name in names]


STRANGE = (
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example:8000",
    "EVIL.example.",
    "[::1",
)
LOCAL = ("localhost:8000", "127.0.0.1", "[::1]:8000", "192.0.2.7:80", "nas", "NAS.local:8000", "x.localhost", "y.lan.")


def test_a_name_that_strangers_may_point_here_is_refused(client: TestClient) -> None:
    assert hosts(client, *LOCAL) == [200] * len(LOCAL)
    assert hosts(client, *STRANGE[:5]) == [421] * 5
    answer = client.get("/model", headers={"Host": "evil.example"})
    assert (answer.json()["code"], answer.headers["content-type"]) == ("unknown_host", "application/problem+json")
    assert "CAPTION_ALLOWED_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("settings", "allowed", "refused"),
    [
        ({"host": "0.0.0.0"}, ("captions.example.org", "nas"), ()),  # a container; others reach it by any name
        ({"api_keys": "key"}, ("captions.example.org",), ()),  # which a strange page does not have
        ({"allowed_hosts": "*"}, ("captions.example.org",), ()),
        (
            {"allowed_hosts": "captions.example.org, *.example.net", "host": "0.0.0.0", "api_keys": "key"},
            ("captions.example.org:443", "a.b.example.net", "localhost", "10.0.0.1"),
            ("example.org", "example.net", "xexample.net", "nas"),
        ),
    ],
)
def test_which_names_are_known(
    engine: FakeEngine, settings: dict[str, Any], allowed: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    with TestClient(create_app(Settings(**settings), engine)) as client:
        assert hosts(client, *allowed) == [200] * len(allowed)
        assert hosts(client, *refused) == [421] * len(refused)


FORWARDED = {
    "X-Forwarded-For": "198.51.100.9, 192.0.2.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/see/it/",
}


@pytest.mark.parametrize(
    ("peer", "believed"), [("192.0.2.1", True), ("::ffff:192.0.2.1", True), ("203.0.113.5", False)]
)
def test_forwarded_headers_are_believed_of_trusted_proxies_alone(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, peer: str, believed: bool
) -> None:
    caplog.set_level(logging.INFO, "app.access")
    app = create_app(Settings(trusted_proxies="192.0.2.0/24"), engine)
    with TestClient(app, client=(peer, 1)) as client:
        document = client.get("/openapi.json", headers=FORWARDED).json()
        assert document.get("servers") == ([{"url": "/see/it"}] if believed else None)
        assert client.get("/static/page.js", headers=FORWARDED).status_code == 200
        assert client.post("/caption", files={"image": plain((1, 2, 3))}, headers=FORWARDED).status_code == 200
        assert "servers" not in client.get("/openapi.json").json()  # nothing is left of it
    clients = {r.fields["client"] for r in caplog.records[:3]}  # type: ignore[attr-defined]
    assert clients == {"198.51.100.9" if believed else peer}


@pytest.mark.parametrize("prefix", ["//evil.example", "/a b", "/a?b", "https://evil.example", "/é", "/a//b"])
def test_a_strange_prefix_is_ignored(engine: FakeEngine, prefix: str) -> None:
    with TestClient(create_app(Settings(trusted_proxies="*", root_path="/set"), engine)) as client:
        headers = {"X-Forwarded-Prefix": prefix.encode()}
        assert client.get("/openapi.json", headers=headers).json()["servers"] == [{"url": "/set"}]


def test_a_slash_too_many_is_no_redirect(client: TestClient) -> None:
    answer = client.post("/caption/", files={"image": plain((1, 2, 3))}, follow_redirects=False)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
