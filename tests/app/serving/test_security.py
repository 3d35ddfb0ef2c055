from __future__ import annotations

import hmac
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.serving import security
from app.settings import Settings
from tests.app.fakes import FakeEngine
from tests.pictures import plain


@pytest.fixture
def keyed(engine: FakeEngine) -> Iterator[TestClient]:
    settings = Settings(api_keys="first-key, second-key", cors_origins="https://a.example")  # type: ignore[arg-type]
    with TestClient(create_app(settings, engine)) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"X-API-Key": "first-key"}, True),
        ({"X-API-Key": "second-key"}, True),
        ({"Authorization": "Bearer second-key"}, True),
        ({"X-API-Key": "wrong", "Authorization": "Bearer second-key"}, True),
        ({"X-API-Key": "first-key", "Authorization": "Bearer wrong"}, True),
        ({"X-API-Key": "wrong", "Authorization": "Bearer wrong"}, False),
        ({"authorization": "bearer first-key"}, True),
        ({}, False),
        ({"X-API-Key": ""}, False),
        ({"X-API-Key": "first-ke"}, False),
        ({"X-API-Key": "first-key, second-key"}, False),
        ({"X-API-Key": b"\xff\xfe"}, False),
        ({"Authorization": "Basic first-key"}, False),
        ({"Authorization": "Bearer"}, False),
    ],
)
def test_keys(keyed: TestClient, engine: FakeEngine, headers: dict[str, Any], allowed: bool) -> None:
    answers = [
        keyed.post("/caption", files={"image": plain((1, 2, 3))}, headers=headers),
        keyed.post("/captions", files={"images": plain((1, 2, 3))}, headers=headers),
        keyed.get("/model", headers=headers),
        keyed.get("/metrics", headers=headers),
    ]
    assert [a.status_code for a in answers] == [200 if allowed else 401] * 4
    if not allowed:
        assert all(a.headers["www-authenticate"] == "Bearer" and a.json()["code"] == "unauthorized" for a in answers)
        assert engine.batches == []


def test_without_a_key_only_what_is_harmless_is_open(keyed: TestClient) -> None:
    for path in ("/health/live", "/health/ready", "/", "/docs", "/openapi.json"):
        assert keyed.get(path).status_code == 200, path
    assert keyed.post("/caption?nonsense=1").status_code == 401  # the key comes before everything else


def test_keys_are_compared_in_constant_time(keyed: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(security, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    keyed.get("/model", headers={"X-API-Key": "first-key"})
    assert compared == [b"first-key", b"second-key"]  # all of them, also after a match


def test_a_key_is_checked_in_the_event_loop(keyed: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def compare(a: bytes, b: bytes) -> bool:
        threads.add(threading.get_ident())
        return hmac.compare_digest(a, b)

    @keyed.app.get("/thread")  # type: ignore[attr-defined,untyped-decorator]
    async def thread() -> int:
        return threading.get_ident()

    monkeypatch.setattr(security, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    keyed.get("/model", headers={"X-API-Key": "first-key"})
    assert threads == {keyed.get("/thread").json()}


def test_keys_are_never_shown(keyed: TestClient) -> None:
    assert "first-key" not in repr(Settings(api_keys="first-key"))  # type: ignore[arg-type]
    for path in ("/openapi.json", "/metrics", "/model"):
        assert "second-key" not in keyed.get(path, headers={"X-API-Key": "first-key"}).text


def test_docs_ask_for_a_key_where_one_is_needed(keyed: TestClient, client: TestClient) -> None:
    assert keyed.get("/openapi.json").json()["paths"]["/caption"]["post"]["security"]
    assert "security" not in client.get("/openapi.json").json()["paths"]["/caption"]["post"]


def test_cors_is_off_unless_set(keyed: TestClient, client: TestClient) -> None:
    def ask(client: TestClient, origin: str) -> str | None:
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        found = client.options("/caption", headers=preflight).headers.get("access-control-allow-origin")
        assert (
            client.get("/health/live", headers={"Origin": origin}).headers.get("access-control-allow-origin") == found
        )
        return found

    assert ask(client, "https://a.example") is None
    assert ask(keyed, "https://b.example") is None
    assert ask(keyed, "https://a.example") == "https://a.example"
