from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from benchmarks.stages import STAGES, Watch, find


class Clock:
    """Shows what it is turned to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def work(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_a_stage_calls_of_another_is_the_others(clock: Clock) -> None:
    watch = Watch(clock)
    inner = watch.watched(lambda: clock.work(3), "inner")

    def outer() -> None:
        clock.work(1)
        inner()
        clock.work(1)

    watch.watched(outer, "outer")()
    assert watch.seconds == {"outer": 2, "inner": 3}


def test_of_a_coroutine_its_turns_count_and_not_what_runs_meanwhile(clock: Clock) -> None:
    watch = Watch(clock)

    async def waits() -> str:
        clock.work(1)
        await asyncio.sleep(0)
        clock.work(2)
        return "done"

    async def other() -> None:
        clock.work(100)

    async def both() -> str:
        result, _ = await asyncio.gather(watch.watched(waits, "waits")(), other())
        return str(result)

    assert asyncio.run(both()) == "done"
    assert watch.seconds == {"waits": 3}


def test_errors_and_cancellation_pass_through(clock: Clock) -> None:
    watch = Watch(clock)
    ended = []

    async def fails() -> None:
        clock.work(1)
        raise ValueError("no")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            clock.work(2)
            ended.append("waits")

    async def run() -> None:
        with pytest.raises(ValueError, match="no"):
            await watch.watched(fails, "fails")()
        task = asyncio.ensure_future(watch.watched(waits, "waits")())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert ended == ["waits"]
    assert watch.seconds == {"fails": 1, "waits": 2}


def test_other_threads_are_not_counted(clock: Clock) -> None:
    watch = Watch(clock)
    work = watch.watched(lambda: clock.work(5), "stage")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not watch.seconds
    work()
    assert watch.seconds == {"stage": 5}


@pytest.mark.parametrize("place", [place for places in STAGES.values() for place in places])
def test_what_is_watched_is_there(place: str) -> None:
    _, name, function = find(place)
    assert callable(function)
    assert function.__name__ == name


def test_a_function_is_replaced_where_its_callers_look_it_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def stage() -> None:
        clock.work(1)

    monkeypatch.setitem(globals(), "_stage", stage)
    watch = Watch(clock)
    watch.install({"a stage": (f"{__name__}:_stage",)})
    replaced: Callable[[], None] = globals()["_stage"]
    replaced()
    assert watch.seconds == {"a stage": 1}
