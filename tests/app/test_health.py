from __future__ import annotations

from starlette.testclient import TestClient


def test_live_and_ready(client: TestClient) -> None:
    assert client.get("/health/live").json() == client.get("/health/ready").json() == {"status": "ok"}


def test_a_stopping_service_lives_but_is_not_ready_and_still_answers(client: TestClient) -> None:
    client.app.state.service.ready = False  # type: ignore[attr-defined]
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "not_ready", "1")
    assert client.get("/health/live").status_code == 200
    assert client.get("/model").status_code == 200
