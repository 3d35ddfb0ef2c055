from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from app.errors import InferenceFailed, NotReady, Overloaded
from app.metrics import Metrics
from app.serving.batching import Answer, Batcher, RequestQueue
from model.config import SearchConfig
from tests.app.fakes import POISON, FakeEngine, FakeLane, describe

BEAM = SearchConfig()
Colour = tuple[int, int, int]


def pixels(colour: Colour) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.broadcast_to(np.asarray(colour, np.uint8), (8, 8, 3))


def right(answer: Answer, colour: Colour, search_config: SearchConfig = BEAM) -> bool:
    return answer.captions[0].text == describe(np.asarray(colour), 0, search_config, False).text


async def submit(
    batcher: Batcher,
    colour: Colour,
    search_config: SearchConfig = BEAM,
    explain: bool = False,
    request_queue: RequestQueue | None = None,
) -> Answer:
    """As the service does it: admitted, then captioned."""
    with batcher.admit():
        return await batcher.submit(pixels(colour), search_config, explain, request_queue)


async def free(batcher: Batcher) -> None:
    """Until no lane is busy, which is a moment after the answer."""
    while batcher.engine_seconds:  # noqa: ASYNC110
        await asyncio.sleep(0)


class Gate:
    """Stops the engine at a stage until the test lets it go on."""

    def __init__(self, stage: str = "encode") -> None:
        self.stage = stage
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, stage: str, size: int) -> None:
        if stage == self.stage:
            self.entered.release()
            assert self.go.acquire(timeout=60)

    async def wait(self) -> None:
        """Until the engine has arrived."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=60)

    def open(self, times: int = 10_000) -> None:
        self.go.release(times)


def run(
    test: Callable[[Batcher], Coroutine[Any, Any, None]], engine: FakeEngine, batch_size: int = 16, queue_size: int = 64
) -> None:
    async def main() -> None:
        batcher = Batcher(engine, Metrics(), batch_size=batch_size, queue_size=queue_size)
        batcher.start()
        try:
            async with asyncio.timeout(120):
                await test(batcher)
        finally:
            if isinstance(engine.on_batch, Gate):
                engine.on_batch.open()
            await batcher.stop()

    asyncio.run(main())


async def started(*awaitables: Awaitable[Any]) -> list[asyncio.Future[Any]]:
    """Start them all, and let each run up to its first wait."""
    futures = [asyncio.ensure_future(a) for a in awaitables]
    for _ in range(3):
        await asyncio.sleep(0)
    return futures


def test_an_idle_batcher_does_not_wait_for_more_pictures() -> None:
    engine = FakeEngine()

    async def test(batcher: Batcher) -> None:
        for colour in ((10, 20, 30), (200, 100, 50)):
            assert right(await submit(batcher, colour), colour)
        assert engine.batches == [1, 1]

    run(test, engine)


def test_what_waits_while_one_batch_runs_is_the_next_batch() -> None:
    gate = Gate()
    engine = FakeEngine(gate)
    colours = [(i * 20, 255 - i * 20, 7) for i in range(9)]

    async def test(batcher: Batcher) -> None:
        first = await started(submit(batcher, (1, 1, 1)))
        await gate.wait()
        rest = await started(*(submit(batcher, c) for c in colours))
        gate.open()
        answers = await asyncio.gather(*first, *rest)
        assert engine.batches == [1, 8, 1]  # 8 at most
        assert all(right(answer, colour) for answer, colour in zip(answers[1:], colours, strict=True))
        assert all(answer.queue > 0 and answer.encode > 0 and answer.generate > 0 for answer in answers)
        assert len(engine.threads) == 1

    run(test, engine, batch_size=8)


@pytest.mark.parametrize(("batch_wait", "batches"), [(60, [3]), (0, [1, 2])])
def test_a_batch_lets_pictures_that_are_being_decoded_join(batch_wait: float, batches: list[int]) -> None:
    engine = FakeEngine()

    async def decoded_then_captioned(batcher: Batcher, decoded: asyncio.Event, i: int) -> None:
        with batcher.admit():
            await decoded.wait()
            assert right(await batcher.submit(pixels((i, 0, 0)), BEAM, False), (i, 0, 0))

    async def test(batcher: Batcher) -> None:
        batcher.batch_wait = batch_wait
        soon, later = asyncio.Event(), asyncio.Event()
        work = await started(
            decoded_then_captioned(batcher, soon, 0), *(decoded_then_captioned(batcher, later, i) for i in (1, 2))
        )
        soon.set()
        await asyncio.sleep(0.01)
        if not batch_wait:
            await work[0]  # it did not wait for the others
        later.set()
        await asyncio.gather(*work)
        assert engine.batches == batches

    run(test, engine)


def test_a_picture_that_cannot_be_decoded_is_not_waited_for() -> None:
    async def test(batcher: Batcher) -> None:
        batcher.batch_wait = 60
        with batcher.admit():
            with batcher.admit():
                [waits] = await started(batcher.submit(pixels((9, 9, 9)), BEAM, False))
            assert right(await waits, (9, 9, 9))

    run(test, FakeEngine())


def test_different_searches_share_the_encoder_but_not_the_search() -> None:
    gate, seen = Gate(), []
    engine = FakeEngine(lambda stage, size: (gate(stage, size), seen.append((stage, size)))[0])
    configs = [SearchConfig(beam_size=1), SearchConfig(beam_size=5), SearchConfig(beam_size=1)]

    async def test(batcher: Batcher) -> None:
        await started(submit(batcher, (1, 1, 1)))
        await gate.wait()
        rest = await started(*(submit(batcher, (i * 70, 0, 0), w) for i, w in enumerate(configs)))
        gate.open()
        answers = await asyncio.gather(*rest)
        assert all(right(a, (i * 70, 0, 0), w) for i, (a, w) in enumerate(zip(answers, configs, strict=True)))
        # First what waits longest, with its like.
        assert seen == [("encode", 1), ("generate", 1), ("encode", 3), ("generate", 2), ("generate", 1)]

    run(test, engine)


def test_explained_pictures_are_searched_apart() -> None:
    async def test(batcher: Batcher) -> None:
        plain, explained = await asyncio.gather(
            submit(batcher, (1, 2, 3)), submit(batcher, (1, 2, 3), BEAM, explain=True)
        )
        assert all(token.explanation is None for token in plain.captions[0].tokens)
        assert all(token.explanation is not None for token in explained.captions[0].tokens)

    run(test, FakeEngine())


@pytest.mark.parametrize("cancelled", [0, 2, 4])
def test_a_cancelled_picture_never_enters_a_batch(cancelled: int) -> None:
    gate = Gate()
    engine = FakeEngine(gate)

    async def test(batcher: Batcher) -> None:
        await started(submit(batcher, (1, 1, 1)))
        await gate.wait()
        waiting = await started(*(submit(batcher, (i, 0, 0)) for i in range(5)))
        waiting[cancelled].cancel()
        await asyncio.sleep(0)
        gate.open()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(a, asyncio.CancelledError) for a in answers] == [i == cancelled for i in range(5)]
        assert engine.batches == [1, 4]

    run(test, engine)


def test_a_caller_gone_after_encoding_is_left_out_of_the_search() -> None:
    gate, sizes = Gate("generate"), []
    engine = FakeEngine(lambda stage, size: (sizes.append((stage, size)), gate(stage, size))[0])
    cheap, costly = SearchConfig(beam_size=1), SearchConfig(beam_size=9)

    async def test(batcher: Batcher) -> None:
        await started(submit(batcher, (1, 1, 1)))
        await gate.wait()
        stays, goes = await started(submit(batcher, (2, 2, 2), cheap), submit(batcher, (3, 3, 3), costly))
        gate.open(1)
        await gate.wait()  # both are encoded, the cheap search runs
        goes.cancel()
        await asyncio.sleep(0)
        gate.open()
        assert right(await stays, (2, 2, 2), cheap)

    run(test, engine)
    assert sizes == [("encode", 1), ("generate", 1), ("encode", 2), ("generate", 1)]


def test_one_bad_picture_does_not_fail_its_neighbours() -> None:
    gate = Gate()
    engine = FakeEngine(gate)
    colours: list[Colour] = [(10, 0, 0), POISON, (60, 0, 0), (90, 0, 0), POISON]

    async def test(batcher: Batcher) -> None:
        await started(submit(batcher, (1, 1, 1)))
        await gate.wait()
        rest = await started(*(submit(batcher, c) for c in colours))
        gate.open()
        answers = await asyncio.gather(*rest, return_exceptions=True)
        for colour, answer in zip(colours, answers, strict=True):
            if colour == POISON:
                assert isinstance(answer, InferenceFailed)
                assert "poisoned" not in answer.detail  # the engine's words go to the log
            else:
                assert isinstance(answer, Answer)
                assert right(answer, colour)
        assert right(await submit(batcher, (5, 5, 5)), (5, 5, 5))

    run(test, engine)


def test_a_failing_search_is_tried_one_by_one_too() -> None:
    gate = Gate()
    failures: list[int] = []

    def on_batch(stage: str, size: int) -> None:
        gate(stage, size)
        if stage == "generate" and size > 1:
            failures.append(size)
            raise MemoryError

    async def test(batcher: Batcher) -> None:
        await started(submit(batcher, (1, 1, 1)))
        await gate.wait()
        rest = await started(*(submit(batcher, (i * 60, 0, 0)) for i in range(4)))
        gate.open()
        assert all(right(a, (i * 60, 0, 0)) for i, a in enumerate(await asyncio.gather(*rest)))

    run(test, FakeEngine(on_batch))
    assert failures == [4]


def test_a_failing_search_of_pictures_encoded_one_by_one_is_tried_one_by_one_too() -> None:
    sizes: list[int] = []

    def on_batch(stage: str, size: int) -> None:
        if stage == "generate":
            sizes.append(size)
            if size > 1:
                raise MemoryError

    async def test(batcher: Batcher) -> None:
        with batcher.admit(8):
            with batcher._condition:  # all of them wait before a lane looks
                work = await started(*(batcher.submit(pixels((i * 30, 0, 0)), BEAM, False) for i in range(8)))
            answers = await asyncio.gather(*work)
        assert all(right(a, (i * 30, 0, 0)) for i, a in enumerate(answers))

    run(test, FakeEngine(on_batch, lanes=2))
    assert max(sizes) > 1
    assert sizes.count(1) == 8


def test_an_engine_that_answers_too_little_is_an_error_not_a_crossed_answer() -> None:
    class Short(FakeEngine):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            return super().generate(*args, **kwargs)[1:]

    async def test(batcher: Batcher) -> None:
        with pytest.raises(InferenceFailed):
            await submit(batcher, (1, 1, 1))

    run(test, Short())


def test_a_request_of_many_pictures_does_not_hold_up_one_of_one() -> None:
    gate, order = Gate(), []
    engine = FakeEngine(gate)

    async def in_order(batcher: Batcher, name: str, request_queue: deque[Any] | None) -> None:
        await submit(batcher, (1, 1, 1), request_queue=request_queue)
        order.append(name)

    async def test(batcher: Batcher) -> None:
        request_queue: deque[Any] = deque()
        many = await started(*(in_order(batcher, "many", request_queue) for _ in range(12)))
        await gate.wait()
        one = await started(in_order(batcher, "one", None))
        gate.open()
        await asyncio.gather(*many, *one)
        assert order.index("one") <= 3  # after the two that ran, in the very next batch

    run(test, engine, batch_size=2)


def test_overload_is_refused_at_once_and_room_is_given_back() -> None:
    async def test(batcher: Batcher) -> None:
        with batcher.admit(3):
            with batcher.admit(1), pytest.raises(Overloaded) as caught, batcher.admit(1):
                pass
            assert caught.value.retry_after is not None
            assert caught.value.retry_after >= 1
            with pytest.raises(Overloaded):
                batcher.check(2)
            batcher.check(1)
        batcher.check(4)
        assert batcher.admitted == 0

    run(test, FakeEngine(), queue_size=4)


def test_stopping_answers_everything_accepted_and_refuses_the_rest() -> None:
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        async def accepted(i: int) -> Answer:
            with batcher.admit():
                await asyncio.sleep(0)  # decoding, say
                return await batcher.submit(pixels((i, 0, 0)), BEAM, False)

        work = await started(*(accepted(i) for i in range(5)))
        await gate.wait()
        [stop] = await started(batcher.stop())
        assert not stop.done()
        gate.open()
        await stop
        assert all(right(task.result(), (i, 0, 0)) for i, task in enumerate(work))
        with pytest.raises(NotReady):
            batcher.check()

    run(test, FakeEngine(gate))


def test_a_picture_that_finds_the_house_empty_is_encoded_by_the_whole_device() -> None:
    engine = FakeEngine(lanes=2)

    async def test(batcher: Batcher) -> None:
        for i in range(3):
            assert right(await submit(batcher, (i, 0, 0)), (i, 0, 0))
            await free(batcher)
        assert engine.batches == [1, 1, 1]
        assert sum(lane.calls for lane in engine.lanes if isinstance(lane, FakeLane)) == 3  # the searches

    run(test, engine)


def test_lanes_work_side_by_side() -> None:
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        work = await started(*(submit(batcher, (i * 50, 0, 0)) for i in range(5)))
        for _ in range(3):
            await gate.wait()  # three are in the encoder at once
        assert batcher.engine_seconds > 0
        gate.open()
        await asyncio.gather(*work)
        await batcher.stop()
        assert batcher.engine_seconds == 0

    run(test, FakeEngine(gate, lanes=3))


@pytest.mark.parametrize(("batch_size", "at_once", "largest"), [(16, 1, 4), (3, 1, 3), (16, 3, 3), (16, 5, 4)])
def test_a_lane_takes_its_share_of_what_waits(batch_size: int, at_once: int, largest: int) -> None:
    """All of it, up to the size of a batch; of more than are searched at once, whole searches."""
    gate, seen = Gate(), []
    engine = FakeEngine(lambda stage, size: (gate(stage, size), seen.append((stage, size)))[0], lanes=3)
    engine.searched_at_once = at_once

    async def test(batcher: Batcher) -> None:
        with batcher.admit(12):
            with batcher._condition:  # all of them wait before a lane looks
                work = [batcher.submit(pixels((i * 20, 0, 0)), BEAM, False) for i in range(12)]
                work = await started(*work)
            for _ in range(3):
                await gate.wait()  # each has its share
            gate.open()
            answers = await asyncio.gather(*work)
        assert all(right(answer, (i * 20, 0, 0)) for i, answer in enumerate(answers))

    run(test, engine, batch_size=batch_size)
    assert [size for stage, size in seen if stage == "encode"] == [1] * 12
    searched = [size for stage, size in seen if stage == "generate"]
    assert sum(searched) == 12
    assert max(searched) == largest


def test_a_lane_that_is_held_up_leaves_its_share_to_others() -> None:
    gate, held_up = Gate(), threading.Event()

    def on_batch(stage: str, size: int) -> None:
        if threading.current_thread().name == "lane-0":
            held_up.set()
            gate(stage, size)
        else:
            assert held_up.wait(60)

    async def test(batcher: Batcher) -> None:
        with batcher.admit(9):
            with batcher._condition:  # all of them wait before a lane looks
                work = await started(*(batcher.submit(pixels((i * 20, 0, 0)), BEAM, False) for i in range(9)))
            await gate.wait()
            while sum(task.done() for task in work) < 8:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            gate.open()
            answers = await asyncio.gather(*work)
        assert all(right(answer, (i * 20, 0, 0)) for i, answer in enumerate(answers))

    run(test, FakeEngine(on_batch, lanes=2))


def test_lanes_keep_to_a_cpu_each_but_not_for_a_lone_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.serving.batching.own_cpus", lambda threads: list(range(10, 10 + threads)))
    gate, stayed = Gate(), []
    monkeypatch.setattr(
        "app.serving.batching.pin_thread", lambda cpus: stayed.append((threading.current_thread().name, sorted(cpus)))
    )

    async def test(batcher: Batcher) -> None:
        gate.open(1)
        await submit(batcher, (1, 1, 1))
        await gate.wait()
        assert stayed == []  # a lane may run anywhere from the beginning
        await free(batcher)
        with batcher.admit(3):
            with batcher._condition:  # all of them wait before a lane looks
                more = await started(*(batcher.submit(pixels((i, 0, 0)), BEAM, False) for i in range(3)))
            for _ in range(2):
                await gate.wait()
            gate.open(3)
            await asyncio.gather(*more)
        assert sorted(stayed) == [("lane-0", [10]), ("lane-1", [11])]
        await free(batcher)
        gate.open(1)
        await submit(batcher, (2, 2, 2))
        assert stayed[2:] in ([("lane-0", [10, 11])], [("lane-1", [10, 11])])

    run(test, FakeEngine(gate, lanes=2))


def test_stopping_ends_the_threads_of_all_lanes() -> None:
    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*(submit(batcher, (i, 0, 0)) for i in range(9)))
        await batcher.stop()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]

    run(test, FakeEngine(lanes=3))


def test_an_engine_that_hangs_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.serving.batching.JOIN_SECONDS", 0.05)
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        [work] = await started(submit(batcher, (1, 1, 1)))
        await gate.wait()
        work.cancel()
        await batcher.stop()
        with pytest.raises(NotReady):
            batcher.check()

        assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("lane-"))

    run(test, FakeEngine(gate))


@pytest.mark.parametrize("lanes", [0, 1, 3])
def test_answers_never_cross_under_failures_and_cancellations(lanes: int) -> None:
    rng = random.Random(0)
    configs = [BEAM, SearchConfig(beam_size=1), SearchConfig(strategy="sample", seed=3)]

    async def test(batcher: Batcher) -> None:
        done = {"right": 0, "failed": 0, "cancelled": 0}

        async def client(request_queue: deque[Any]) -> None:
            for _ in range(25):
                poison = rng.random() < 0.03
                colour = POISON if poison else (rng.randrange(240), rng.randrange(256), rng.randrange(240))
                search_config = rng.choice(configs)
                task = asyncio.ensure_future(submit(batcher, colour, search_config, request_queue=request_queue))
                if rng.random() < 0.1:
                    await asyncio.sleep(rng.choice((0, 0, 0.001)))
                    task.cancel()
                try:
                    answer = await task
                except InferenceFailed:
                    assert poison
                    done["failed"] += 1
                except asyncio.CancelledError:
                    done["cancelled"] += 1
                else:
                    assert not poison
                    assert right(answer, colour, search_config)
                    done["right"] += 1

        lines: list[deque[Any]] = [deque() for _ in range(16)]
        await asyncio.gather(*(client(lines[i // 2]) for i in range(32)))
        assert sum(done.values()) == 32 * 25
        assert min(done.values()) > 0

    run(test, FakeEngine(lanes=lanes))
