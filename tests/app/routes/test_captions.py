"""POST /captions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.routes import caption as routes
from app.schemas import CaptionsResponse
from app.serving import service
from app.settings import Settings
from tests.app.asgi import body, call, running
from tests.app.fakes import POISON, FakeEngine
from tests.pictures import bombs, plain

GREEN, BLUE = plain((16, 200, 40)), plain((10, 10, 230), "JPEG")


def post(client: TestClient, *files: bytes, query: str = "", field: str = "images") -> Any:
    return client.post(f"/captions{query}", files=[(field, (f"{i}.x", data)) for i, data in enumerate(files)])


def test_each_picture_gets_the_answer_it_gets_alone(client: TestClient) -> None:
    answer = post(client, GREEN, BLUE, query="?num_captions=2").json()
    CaptionsResponse.model_validate(answer)
    alone = [client.post("/caption?num_captions=2", files={"image": data}).json() for data in (GREEN, BLUE)]
    assert [r["filename"] for r in answer["results"]] == ["0.x", "1.x"]
    assert [r["result"]["captions"] for r in answer["results"]] == [a["captions"] for a in alone]
    assert all(r["result"]["request_id"] == answer["request_id"] for r in answer["results"])


def test_a_bad_picture_never_fails_its_neighbours(client: TestClient) -> None:
    results = post(client, GREEN, GREEN[:50], bombs()["PNG"], BLUE).json()["results"]
    assert [r.get("error", {}).get("status") for r in results] == [None, 422, 413, None]
    results = post(client, plain(POISON), b"text", bytes(1_000_001), GREEN).json()["results"]
    assert [r.get("error", {}).get("status") for r in results] == [500, 415, 413, None]
    assert all(("result" in r) != ("error" in r) for r in results)


def test_pictures_of_one_request_share_batches(client: TestClient, engine: FakeEngine) -> None:
    post(client, GREEN, BLUE, GREEN, BLUE)
    assert sum(engine.batches) == 4


@pytest.mark.parametrize(
    ("files", "field", "status"),
    [
        ([GREEN] * 5, "images", 422),  # more than CAPTION_MAX_IMAGES
        ([GREEN] * 20, "images", 422),
        ([GREEN], "image", 422),
        ([GREEN], "files", 200),
        ([], "images", 415),
        ([bytes(900_000)] * 3, "images", 413),  # each small enough, together too large
    ],
)
def test_what_is_wrong_with_the_whole_request_fails_it_whole(
    client: TestClient, files: list[bytes], field: str, status: int
) -> None:
    answer = post(client, *files, field=field)
    assert answer.status_code == status
    assert answer.headers["content-type"] == f"application/{'json' if status == 200 else 'problem+json'}"


def test_reasons_are_written_while_the_event_loop_goes_on(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n' + GREEN + b"\r\n"

    async def test() -> None:
        loop = asyncio.get_running_loop()

        def once_the_loop_has_turned(make: Callable[..., Any]) -> Callable[..., Any]:
            def wait(*values: Any) -> Any:
                turned = threading.Event()
                loop.call_soon_threadsafe(turned.set)
                assert turned.wait(60), "the loop is held up"
                waited.append(make.__name__)
                return make(*values)

            return wait

        monkeypatch.setattr(service, "captions_out", once_the_loop_has_turned(service.captions_out))
        monkeypatch.setattr(routes, "_json", once_the_loop_has_turned(routes._json))
        async with running(create_app(Settings(), engine)) as app:
            reply = await call(app, "/captions?explain=true", body(part * 3 + b"--b--\r\n"), boundary)
        CaptionsResponse.model_validate_json(reply.body)

    asyncio.run(test())
    assert sorted(waited) == ["_json"] * 3 + ["captions_out"] * 3


def test_a_raw_body_is_not_enough(client: TestClient) -> None:
    assert client.post("/captions", content=GREEN, headers={"content-type": "image/png"}).status_code == 415


def test_bad_parameters_are_named(client: TestClient) -> None:
    assert "beam_size" in post(client, GREEN, query="?beam_size=11").json()["detail"]
