from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine
from tests.pictures import plain


def test_live_and_ready(client: TestClient) -> None:
    assert client.get("/health/live").json() == client.get("/health/ready").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/", "/docs", "/model", "/static/page.js"])
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


def test_what_has_no_get_has_no_head(client: TestClient) -> None:
    assert client.head("/caption").status_code == 405
    assert client.head("/nowhere").status_code == 404
    assert client.post("/health/live").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(("log_health", "lines"), [(True, 4), (False, 1)])
def test_health_checks_that_pass_are_logged_by_setting(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, log_health: bool, lines: int
) -> None:
    caplog.set_level(logging.INFO, "app.access")
    with TestClient(create_app(Settings(log_health=log_health), engine)) as client:
        client.get("/health/live")
        client.get("/health/ready")
        client.get("/v2/health/ready")  # of the Open Inference Protocol
        client.app.state.service.ready = False  # type: ignore[attr-defined]
        assert client.get("/health/ready").status_code == 503
        assert 'route="/health/ready",status="200"} 1.0' in client.get("/metrics").text
    records = [r for r in caplog.records if r.name == "app.access" and r.fields["path"] != "/metrics"]  # type: ignore[attr-defined]
    assert len(records) == lines


def test_a_stopping_service_lives_but_is_not_ready_and_still_answers(client: TestClient) -> None:
    client.app.state.service.ready = False  # type: ignore[attr-defined]
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "not_ready", "1")
    assert client.get("/health/live").status_code == 200
    assert client.get("/model").status_code == 200


def test_a_service_whose_engine_hangs_does_not_live() -> None:
    entered, go = threading.Event(), threading.Event()

    def hang(stage: str, size: int) -> None:
        entered.set()
        assert go.wait(60)

    with TestClient(create_app(Settings(hang=0.01), FakeEngine(hang))) as client, ThreadPoolExecutor(1) as pool:
        assert client.get("/health/live").status_code == 200
        caption = pool.submit(client.post, "/caption", files={"image": plain((9, 9, 9))})
        assert entered.wait(60)
        answer = client.get("/health/live")
        while answer.status_code == 200:  # until the hundredth of a second has passed
            answer = client.get("/health/live")
        assert (answer.status_code, answer.json()["code"]) == (503, "engine_hangs")
        go.set()
        assert caption.result().status_code == 200
        while client.get("/health/live").status_code == 503:  # the lane is free a moment after its answer
            pass
