"""Pictures out of bodies, within limits of bytes, time and memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.main import create_app
from app.serving.middleware import LINGER_BYTES
from app.settings import Settings
from tests.app.asgi import body, call, running, until
from tests.app.fakes import FakeEngine
from tests.app.routes.test_caption import post
from tests.pictures import encode, plain

GREEN = plain((16, 200, 40))
RAW = {"content-type": "image/png"}


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ([("picture", ("x.png", GREEN))], "'picture'"),
        ([("image", ("x.png", GREEN)), ("image", ("y.png", GREEN))], "at most 1"),
        ([("image", ("x.png", GREEN)), ("other", ("y.png", GREEN))], "'other'"),
        ([("image", ("x.png", GREEN))] * 5, "at most 1"),
        ([("image", ("x.png", GREEN))] * 50, "more than"),
    ],
)
def test_wrong_form_fields_are_named(client: TestClient, files: list[Any], word: str) -> None:
    answer = client.post("/caption", files=files)
    assert answer.status_code == 422
    assert word in answer.json()["detail"]


def test_the_bytes_say_what_a_body_is(client: TestClient) -> None:
    # What curl sends with --data-binary, with -T (by PUT), and what other clients call a file.
    for content_type in ("application/x-www-form-urlencoded", "", "text/plain", "binary/octet-stream", "IMAGE/JPG"):
        headers = {"content-type": content_type} if content_type else {}
        for method in ("POST", "PUT"):
            answer = client.request(method, "/caption", content=GREEN, headers=headers)
            assert answer.status_code == 200, (method, content_type)
            assert answer.json()["image"]["format"] == "PNG"


@pytest.mark.parametrize("name", ["image", "file"])
def test_the_field_may_be_called_a_file(client: TestClient, name: str) -> None:
    assert client.post("/caption", files={name: ("x.png", GREEN)}).status_code == 200


def test_a_part_without_a_file_name_is_a_file_all_the_same(client: TestClient) -> None:
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    large = encode(Image.effect_noise((400, 400), 100).convert("RGB"), "PNG")
    assert len(large) > 100_000
    for data, status in ((GREEN, 200), (large, 200), (b"a" * 100_000, 415)):
        body = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + data + b"\r\n--b--\r\n"
        assert client.post("/caption", content=body, headers=boundary).status_code == status


def test_a_slow_body_that_goes_on_is_waited_for(engine: FakeEngine) -> None:
    async def send(pieces: int, pause: float, **settings: float) -> int:
        """The status for a body in so many pieces; the loop's clock goes on by `pause` before each of them."""
        async with running(create_app(Settings(**settings), engine)) as app:  # type: ignore[arg-type]
            loop, ahead = asyncio.get_running_loop(), 0.0
            real, size = loop.time, -(-len(GREEN) // pieces)
            loop.time = lambda: real() + ahead  # type: ignore[method-assign]
            left = [GREEN[i : i + size] for i in range(0, len(GREEN), size)]

            async def receive() -> Any:
                nonlocal ahead
                if not left:
                    await asyncio.Event().wait()
                ahead += pause
                await asyncio.sleep(0.001)  # past timers get their turn
                return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

            return (await call(app, "/caption", receive, RAW)).status

    assert asyncio.run(send(10, 15, body_timeout=20, body_rate_kb=0)) == 200  # 150 seconds
    assert asyncio.run(send(10, 25, body_timeout=20, body_rate_kb=0)) == 408  # silent for too long
    assert asyncio.run(send(10, 15, body_timeout=20, body_rate_kb=16)) == 408  # under 16 kB a second


def test_a_body_over_the_limit_is_refused_while_it_streams_in(settings: Settings, engine: FakeEngine) -> None:
    given = 0

    async def endless() -> dict[str, Any]:
        nonlocal given
        given += 100_000
        return {"type": "http.request", "body": bytes(100_000), "more_body": True}

    async def test() -> None:
        async with running(create_app(settings, engine)) as app:
            reply = await call(app, "/caption", endless, {**RAW, "transfer-encoding": "chunked"})
            assert (reply.status, reply.headers.get("connection")) == (413, "close")
            assert given <= settings.max_upload_bytes + LINGER_BYTES + 300_000
            form = {"content-type": "multipart/form-data; boundary=b"}
            assert (await call(app, "/caption", endless, form)).status in (400, 413)
            assert app.state.service.upload_memory.used == 0

    asyncio.run(test())


def test_a_declared_600_mb_is_refused_before_it_is_read(settings: Settings, engine: FakeEngine) -> None:
    replied = asyncio.Event()

    async def after_the_answer() -> dict[str, Any]:
        assert replied.is_set()
        return {"type": "http.disconnect"}

    async def test() -> None:
        async with running(create_app(settings, engine)) as app:
            headers = {**RAW, "content-length": "600000000"}
            reply = await call(app, "/caption", after_the_answer, headers, replied)
            assert (reply.status, reply.headers.get("connection")) == (413, "close")
            assert reply.json()["code"] == "too_large"

    asyncio.run(test())


def test_a_body_that_never_ends_times_out(engine: FakeEngine) -> None:
    async def test() -> None:
        async with running(create_app(Settings(body_timeout=0.05), engine)) as app:
            chunks = [{"type": "http.request", "body": GREEN[:9], "more_body": True}]

            async def slow() -> Any:
                return chunks.pop() if chunks else await asyncio.Event().wait()

            reply = await call(app, "/caption", slow, RAW)
            assert (reply.status, reply.json()["code"]) == (408, "body_timeout")

    asyncio.run(test())


def test_a_client_that_hangs_up_while_sending(settings: Settings, engine: FakeEngine) -> None:
    messages = [{"type": "http.request", "body": GREEN[:9], "more_body": True}, {"type": "http.disconnect"}]

    async def test() -> None:
        async with running(create_app(settings, engine)) as app:

            async def receive() -> dict[str, Any]:
                return messages.pop(0)

            assert (await call(app, "/caption", receive, RAW)).status == 499
            assert app.state.service.upload_memory.used == 0

    asyncio.run(test())


def test_uploads_held_at_once_are_bounded(engine: FakeEngine) -> None:
    async def test() -> None:
        settings = Settings(max_upload_mb=1, max_batch_mb=1, upload_memory_mb=1)
        async with running(create_app(settings, engine)) as app:
            waiting = asyncio.Event()
            chunks = [{"type": "http.request", "body": bytes(800_000), "more_body": True}]

            async def slow() -> Any:
                if chunks:
                    return chunks.pop()
                await waiting.wait()
                return {"type": "http.disconnect"}

            first = asyncio.ensure_future(call(app, "/caption", slow, RAW))
            await until(lambda: app.state.service.upload_memory.used > 0)
            second = await call(app, "/caption", body(bytes(300_000)), RAW)
            assert (second.status, second.headers["retry-after"]) == (503, "1")
            waiting.set()
            await first
            assert app.state.service.upload_memory.used == 0
            assert (await call(app, "/caption", body(GREEN), RAW)).status == 200

    asyncio.run(test())


def test_a_picture_is_never_written_to_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    large = encode(Image.effect_noise((950, 950), 100), "BMP")
    assert 900_000 < len(large) < 1_000_000
    assert post(client, large).status_code == 200
