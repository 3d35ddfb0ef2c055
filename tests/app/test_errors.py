"""What can go wrong: each error has its status, and none keeps what failed in memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc

import pytest
from fastapi import FastAPI

from app.errors import ServiceError, of_image, problem
from app.main import create_app
from app.settings import Settings
from model.errors import ImageError
from tests.app.asgi import assert_, body, call, running, until
from tests.app.fakes import FakeEngine
from tests.pictures import plain

GREEN = plain((16, 200, 40))


FORM = {"content-type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize("ending", ["deadline", "hang-up", "broken"])
@pytest.mark.parametrize("path", ["/caption", "/captions"])
def test_what_failed_does_not_stay_in_memory(engine: FakeEngine, path: str, ending: str) -> None:
    size, times, go = 500_000, 8, threading.Event()
    engine.on_batch = lambda stage, number: assert_(go.wait(300))  # longer than `until` waits
    one = (b"" if ending == "broken" else GREEN) + bytes(size)
    part = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n%s\r\n'
    form = (part % (path[1:].replace("caption", "image").encode(), one)) * (2 if path == "/captions" else 1) + b"--b--"

    async def ask(app: FastAPI) -> int:
        gone = asyncio.Event()
        asking = asyncio.ensure_future(call(app, path, body(form, gone=gone), FORM))
        if ending == "hang-up":
            await until(lambda: app.state.service.batcher.admitted > 0)
            gone.set()
        return (await asking).status

    async def test() -> None:
        async with running(create_app(Settings(deadline=0.05 if ending == "deadline" else 60), engine)) as app:
            await ask(app)
            gc.collect()
            gc.disable()  # it looks after so many objects, however large
            tracemalloc.start()
            try:
                statuses = {await ask(app) for _ in range(times)}
                for _ in range(1000):  # what ends after its answer
                    if (held := tracemalloc.get_traced_memory()[0]) < 2 * size:
                        break
                    await asyncio.sleep(0.001)
            finally:
                gc.enable()
                go.set()  # or the application would wait for its engine
            assert held < 2 * size
            assert statuses == {{"deadline": 504, "hang-up": 499}.get(ending, 415 if path == "/caption" else 200)}

    try:
        asyncio.run(test())
    finally:
        tracemalloc.stop()  # once no thread decodes any more: beside one CPython before 3.13.2 may crash (gh-128679)


def test_each_kind_of_error_is_known_by_its_code() -> None:
    kinds = [ServiceError, *subclasses(ServiceError)]
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert problem(kind.status, kind.code, "x", "y")["title"]
        assert kind("x").retry_after == kind.retry_after
        assert kind("x", retry_after=7).retry_after == 7


def subclasses(kind: type) -> list[type]:
    return [below for one in kind.__subclasses__() for below in (one, *subclasses(one))]


def test_whatever_is_wrong_with_a_picture_is_the_clients_to_know() -> None:
    for kind in subclasses(ImageError):
        told = of_image(kind("why"))
        assert (400 <= told.status < 500, told.detail) == (True, "why"), kind
