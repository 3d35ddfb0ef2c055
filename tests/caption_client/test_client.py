from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from caption_client import client as client_module
from caption_client.answers import Result
from caption_client.client import AsyncCaptionClient, CaptionClient, CaptionError, retry_after
from tests.app.fakes import FakeEngine
from tests.pictures import plain

PICTURE = plain((200, 20, 20))
ANSWER = {
    "caption": "Red.", "confidence": 0.5, "captions": [
        {"text": "Red.", "confidence": 0.5, "log_probability": -1.4, "tokens": [{"text": "red", "probability": 0.5}]}
    ],
    "model": {"name": "fake", "version": "1"}, "image": {"width": 1, "height": 1, "format": "PNG"},
    "timing_ms": {"queue": 0, "decode": 0, "encode": 0, "generate": 0, "total": 0}, "request_id": "r",
}  # fmt: skip
PROBLEM = {"type": "about:blank", "title": "", "status": 422, "detail": "cut off", "code": "broken_image",
           "request_id": "abc"}  # fmt: skip


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds the client waited, without waiting them."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(client_module.time, "sleep", waited.append)
    monkeypatch.setattr(client_module.asyncio, "sleep", sleep)
    return waited


def answering(*answers: httpx.Response | Exception) -> tuple[Callable[[httpx.Request], httpx.Response], list[str]]:
    """A transport handler that gives `answers` in turn, and the request paths it saw."""
    left, seen = list(answers), []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle, seen


def ask(kind: str, handle: Callable[[httpx.Request], httpx.Response], **options: int) -> str:
    """The caption of PICTURE by the client of this `kind`."""
    transport = httpx.MockTransport(handle)
    if kind == "sync":
        with CaptionClient("http://there/prefix/", transport=transport, **options) as client:
            return client.caption(PICTURE, num_captions=2, seed=None).caption

    async def run() -> str:
        async with AsyncCaptionClient("http://there/prefix", transport=transport, **options) as client:
            return (await client.caption(PICTURE, num_captions=2, seed=None)).caption

    return asyncio.run(run())


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
def test_waits_as_long_as_it_is_told(kind: str, waits: list[float]) -> None:
    handle, seen = answering(
        httpx.Response(503, headers={"Retry-After": "7"}),
        httpx.Response(429, headers={"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)}),
        httpx.Response(503, headers={"Retry-After": "100000"}),
        httpx.Response(503),
        httpx.ConnectError("refused"),
        httpx.Response(200, json=ANSWER),
    )
    assert ask(kind, handle) == "Red."
    assert seen == ["http://there/prefix/caption?num_captions=2"] * 6
    assert waits[0] == 7
    assert 25 < waits[1] <= 30
    assert waits[2] == client_module.LONGEST_WAIT
    assert 0 < waits[3] <= 4
    assert 0 < waits[4] <= 8


@both
def test_gives_up_in_the_end(kind: str, waits: list[float]) -> None:
    handle, seen = answering(*[httpx.Response(503, json=PROBLEM | {"status": 503, "code": "overloaded"})] * 3)
    with pytest.raises(CaptionError, match="cut off") as raised:
        ask(kind, handle, tries=3)
    assert (raised.value.status, raised.value.code) == (503, "overloaded")
    assert (len(seen), len(waits)) == (3, 2)


@both
@pytest.mark.parametrize(
    ("answer", "status", "code", "detail"),
    [
        (lambda: httpx.Response(422, json=PROBLEM), 422, "broken_image", "cut off"),
        (
            lambda: httpx.Response(502, text="<html>Bad gateway"),
            502,
            "not_the_service",
            "the server answered 502 Bad Gateway",
        ),
        (
            lambda: httpx.Response(404, json=["not", "ours"]),
            404,
            "not_the_service",
            "the server answered 404 Not Found",
        ),
        (lambda: httpx.ReadTimeout("slow"), 0, "unreachable", "no answer: slow"),
        (lambda: httpx.ConnectError("refused"), 0, "unreachable", "no answer: refused"),
        (lambda: httpx.DecodingError("no gzip"), 0, "unreachable", "no answer: no gzip"),
        (
            lambda: httpx.Response(200, text="<html>Welcome"),
            200,
            "not_the_service",
            "what is at this address is not the captioning service",
        ),
        (
            lambda: httpx.Response(200, json={"caption": 3}),
            200,
            "not_the_service",
            "what is at this address is not the captioning service",
        ),
        (
            lambda: httpx.Response(301, headers={"Location": "https://there/"}),
            301,
            "not_the_service",
            "the server answered 301 Moved Permanently; the service may be at https://there/",
        ),
    ],
    ids=["problem", "proxy", "other-json", "timeout", "wrong-port", "garbled", "page", "other-answer", "moved"],
)
def test_does_not_repeat_what_cannot_get_better(
    kind: str, waits: list[float], answer: Callable[[], httpx.Response | Exception], status: int, code: str, detail: str
) -> None:
    handle, seen = answering(answer())
    with pytest.raises(CaptionError) as raised:
        ask(kind, handle)
    assert (raised.value.status, raised.value.code, raised.value.detail) == (status, code, detail)
    assert len(seen) == 1
    assert waits == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 5), ("-3", 0), ("0", 0), ("soon", None), ("", None), ("Mon, 01 Jan 2001 00:00:00 GMT", 0)],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_no_tries_is_no_number_of_tries() -> None:
    with pytest.raises(ValueError, match="tries"):
        CaptionClient(tries=0)


@pytest.mark.parametrize("url", ["localhost:8000", "", "http://", "ftp://there", "http://[::1", "http://a:b/"])
def test_what_is_no_address_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        CaptionClient(url)


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_a_key_that_no_header_can_carry_is_said_at_once(key: str) -> None:
    with pytest.raises(ValueError, match="API key"):
        CaptionClient(api_key=key)


def counting(most_bytes: int, requests: list[int]) -> Callable[[httpx.Request], httpx.Response]:
    """A service that takes 16 pictures at once, behind a proxy that takes `most_bytes`."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(
                200, json={"name": "fake", "version": "1", "limits": {"max_images": 16, "max_batch_bytes": 5000}}
            )
        body = request.read()
        if len(body) > most_bytes:
            return httpx.Response(413, text="<html>Request Entity Too Large")
        count = body.count(b'name="images"')
        requests.append(count)
        return httpx.Response(
            200, json={"results": [{"filename": "", "result": ANSWER}] * count, "request_id": "r", "newer": 1}
        )

    return handle


def captions(kind: str, handle: Callable[[httpx.Request], httpx.Response], pictures: list[bytes]) -> list[Result]:
    transport = httpx.MockTransport(handle)
    if kind == "sync":
        with CaptionClient(transport=transport) as client:
            return client.captions(pictures)

    async def run() -> list[Result]:
        async with AsyncCaptionClient(transport=transport) as client:
            return await client.captions(pictures)

    return asyncio.run(run())


@both
def test_no_pictures_are_no_request(kind: str) -> None:
    assert captions(kind, lambda request: pytest.fail("asked"), []) == []


@both
def test_many_pictures_are_several_requests(kind: str) -> None:
    requests: list[int] = []
    results = captions(kind, counting(10**6, requests), [b"x"] * 40)
    assert requests == [16, 16, 8]
    assert [result.filename for result in results] == [str(n) for n in range(40)]
    requests.clear()
    captions(kind, counting(10**6, requests), [b"x" * 2000] * 5)  # the service's limit of bytes
    assert requests == [2, 2, 1]


@both
def test_what_a_proxy_finds_too_large_is_sent_in_smaller_parts(kind: str) -> None:
    requests: list[int] = []
    results = captions(kind, counting(1500, requests), [b"x"] * 10 + [b"x" * 2000])
    assert sum(requests) == 10
    assert [result.error and result.error.status for result in results] == [None] * 10 + [413]


@both
def test_an_answer_for_another_number_of_pictures_is_none(kind: str) -> None:
    answer = httpx.Response(200, json={"results": [], "request_id": "r"})
    with pytest.raises(CaptionError, match="0 answers for 1 pictures"):
        captions(kind, lambda request: answer, [b"x"])


def test_against_the_service_itself(tmp_path: Path) -> None:
    """Every method, both clients, through the real application."""
    path = tmp_path / "red.png"
    path.write_bytes(PICTURE)
    app = create_app(Settings(drain_delay=0, api_keys="key"), FakeEngine())  # type: ignore[arg-type]
    with TestClient(app) as http:

        def through(request: httpx.Request) -> httpx.Response:
            answer = http.request(request.method, str(request.url), content=request.read(), headers=request.headers)
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

        transport = httpx.MockTransport(through)
        with CaptionClient("http://testserver", "key", transport=transport) as client:
            one = client.caption(path, num_captions=3, explain=True)
            assert len(one.captions) == 3
            assert one.captions[0].tokens[0].attention is not None
            assert client.caption(str(path)).caption == client.caption(PICTURE).caption
            several = client.captions([path, b"nothing", PICTURE])
            assert [result.filename for result in several] == ["red.png", "1", "2"]
            assert [result.error and result.error.code for result in several] == [None, "unsupported_media_type", None]
            assert client.model()["name"] == "fake"
            assert isinstance(transport, httpx.AsyncBaseTransport)

        async def run() -> None:
            async with AsyncCaptionClient("http://testserver", "key", transport=transport) as client:
                assert (await client.caption(path)).caption == one.caption
                assert len(await client.captions([path, PICTURE])) == 2
                assert (await client.model())["version"] == "1"

        asyncio.run(run())
        with (
            CaptionClient("http://testserver", "wrong", transport=transport) as client,
            pytest.raises(CaptionError, match="key") as raised,
        ):
            client.caption(path)
        assert raised.value.status == 401
        assert raised.value.request_id
