"""From files to captions: deadline, hang-ups, overload, and answers that never cross."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import pytest

from app.main import create_app
from app.settings import Settings
from tests.app.asgi import assert_, body, call, running, until
from tests.app.fakes import POISON, FakeEngine
from tests.pictures import bombs, plain

GREEN = plain((16, 200, 40))
RAW = {"content-type": "image/png"}


def test_a_client_that_hangs_up_is_dropped(engine: FakeEngine) -> None:
    entered, go = threading.Event(), threading.Event()

    def stop(stage: str, size: int) -> None:
        entered.set()
        assert_(go.wait(60))

    async def test() -> None:
        engine.on_batch = stop
        async with running(create_app(Settings(), engine)) as app:
            batcher = app.state.service.batcher
            first = asyncio.ensure_future(call(app, "/caption", body(GREEN), RAW))
            await asyncio.to_thread(entered.wait, 60)
            gone = asyncio.Event()
            second = asyncio.ensure_future(call(app, "/caption", body(GREEN, gone=gone), RAW))
            await until(lambda: bool(batcher._request_queues))
            assert batcher.admitted == 2
            gone.set()
            assert (await second).status == 499
            assert batcher.admitted == 1
            go.set()
            assert (await first).status == 200
        assert engine.batches == [1]

    asyncio.run(test())


def test_the_deadline_covers_waiting_and_running(engine: FakeEngine) -> None:
    go = threading.Event()
    engine.on_batch = lambda stage, size: assert_(go.wait(60))

    async def test() -> None:
        async with running(create_app(Settings(deadline=0.5), engine)) as app:
            replies = await asyncio.gather(*(call(app, "/caption", body(GREEN), RAW) for _ in range(3)))
            assert [(r.status, r.json()["code"]) for r in replies] == [(504, "deadline_exceeded")] * 3
            assert app.state.service.batcher.admitted == 0
            go.set()
        assert len(engine.batches) <= 1  # what had run out of time while it waited was not run

    asyncio.run(test())


def test_overload_answers_503_at_once_while_accepted_work_finishes(engine: FakeEngine) -> None:
    entered, go = threading.Event(), threading.Event()

    def stop(stage: str, size: int) -> None:
        entered.set()
        assert_(go.wait(60))

    async def never() -> Any:
        raise AssertionError("the upload was read before it was refused")

    async def test() -> None:
        engine.on_batch = stop
        async with running(create_app(Settings(queue_size=3, max_images=3), engine)) as app:
            accepted = [asyncio.ensure_future(call(app, "/caption", body(GREEN), RAW)) for _ in range(3)]
            await asyncio.to_thread(entered.wait, 60)
            await until(lambda: app.state.service.batcher.admitted == 3)
            reply = await call(app, "/caption", never, RAW)
            assert (reply.status, reply.json()["code"]) == (503, "overloaded")
            assert int(reply.headers["retry-after"]) >= 1
            go.set()
            assert [(await task).status for task in accepted] == [200] * 3
            assert (await call(app, "/caption", body(GREEN), RAW)).status == 200

    asyncio.run(test())


@pytest.mark.parametrize("lanes", [0, 2])
def test_32_clients_get_their_own_answers(lanes: int) -> None:
    searched: list[int] = []

    def slow(stage: str, size: int) -> None:
        time.sleep(0.0005)  # lets batches form
        if stage == "generate":
            searched.append(size)

    engine = FakeEngine(slow, lanes)
    rng = random.Random(0)

    async def test() -> None:
        async with running(create_app(Settings(max_pixels=1_000_000), engine)) as app:
            expected = {}
            for i in range(64):
                colour = (i % 8 * 30, i // 8 * 30, 7)
                data = plain(colour, "PNG", (8, 8))
                expected[data] = (await call(app, "/caption", body(data), RAW)).json()["caption"]
            assert len(set(expected.values())) == 64
            good, counts = list(expected), dict.fromkeys((200, 413, 422, 499, 500), 0)

            async def client() -> None:
                for _ in range(40):
                    data, gone, status = rng.choice(good), None, 200
                    chance = rng.random()
                    if chance < 0.05:
                        data, status = data[:50], 422
                    elif chance < 0.08:
                        data, status = bombs()["PNG"], 413
                    elif chance < 0.11:
                        data, status = plain(POISON), 500
                    elif chance < 0.18:
                        gone = asyncio.Event()
                        asyncio.get_running_loop().call_later(rng.random() * 0.01, gone.set)
                    reply = await call(app, "/caption", body(data, gone=gone), RAW)
                    counts[reply.status] += 1
                    if gone is None:
                        assert reply.status == status
                    if reply.status == 200:
                        assert reply.json()["caption"] == expected[data]

            await asyncio.gather(*(client() for _ in range(32)))
            assert sum(counts.values()) == 32 * 40
            assert min(counts.values()) > 0
            assert app.state.service.batcher.admitted == 0
        assert max(searched) > 1

    asyncio.run(test())
