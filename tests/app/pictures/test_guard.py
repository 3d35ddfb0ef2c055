from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from prometheus_client import generate_latest

from app.decorative import is_decorative
from app.errors import (
    BrokenImage,
    DecoderFailed,
    Overloaded,
    ServiceError,
    TooCostly,
    UnsupportedMedia,
)
from app.metrics import Metrics
from app.pictures import guard as module
from app.pictures.decoder import REPLY
from app.pictures.guard import Decoded, Guard
from benchmarks.pictures import hostile, many_scans
from model import images
from model.config import PreprocessConfig
from model.preprocess import to_pixels
from tests.app.asgi import until
from tests.pictures import FORMATS, bombs, encode, plain, quarters

PREPROCESS = PreprocessConfig(size=64)
SAMPLE = Path(__file__).parents[3] / "app" / "static" / "sample.jpg"
SCANS = many_scans(2000, 50_000)  # minutes
MEGABYTE = 1_000_000


def make(**given: Any) -> Guard:
    settings = {"workers": 2, "max_bytes": 20_000_000, "max_pixels": 50_000_000, "seconds": 60, "memory_mb": 1024,
                "max_costly": 8}  # fmt: skip
    return Guard(PREPROCESS, Metrics(), **(settings | given))


@asynccontextmanager
async def running(**given: Any) -> AsyncIterator[Guard]:
    guard = make(**given)
    await guard.start()
    try:
        yield guard
    finally:
        await guard.stop()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def error_of(guard: Guard, data: bytes) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await guard.read(data)
    return caught.value


def ended(guard: Guard, reason: str) -> float:
    value = guard.metrics.registry.get_sample_value("caption_decoders_ended_total", {"reason": reason})
    return value or 0.0


def kill(worker: module.Worker, number: signal.Signals = signal.SIGKILL) -> None:
    assert worker.pid > 0  # 0 would be the group that runs the tests, -1 everything
    os.kill(worker.pid, number)


async def decoding(guard: Guard) -> module.Worker:
    """A worker that has begun with its picture."""
    at_it: list[module.Worker] = []

    def look() -> bool:
        busy = (worker for worker in guard._running if worker.job and not worker.ended)
        at_it[:] = [worker for worker in busy if worker.cpu_seconds() - worker.cpu > 0.005]
        return bool(at_it)

    await until(look)
    return at_it[0]


def test_gives_what_reading_here_gives_and_errors_come_through() -> None:
    async def test() -> None:
        async with running() as guard:
            for format in FORMATS:
                data = encode(quarters((300, 200)), format)
                here, there = images.read(data, 50_000_000, PREPROCESS.size), await guard.read(data)
                assert (there.width, there.height, there.format) == (here.width, here.height, here.format)
                assert (there.pixels == to_pixels(here.image, PREPROCESS)).all()
                assert there.decorative == is_decorative(there.pixels, there.width, there.height)
            assert (await guard.read(plain((1, 2, 3)))).decorative
            assert not (await guard.read(SAMPLE.read_bytes())).decorative
            assert isinstance(await error_of(guard, b"hello"), UnsupportedMedia)
            assert "limit is 50000000" in (await error_of(guard, bombs()["WEBP"])).detail
            assert isinstance(await error_of(guard, plain((1, 2, 3), "AVIF")[:-20]), BrokenImage)
            assert (await guard.read(plain((1, 2, 3), "WEBP"))).format == "WEBP"

    run(test)


def test_pictures_may_be_resized_fast() -> None:
    pytest.importorskip("cykooz_resizer")  # there is no wheel for Linux on ARM

    async def test() -> None:
        picture = quarters((300, 200)).resize((301, 203))
        data = encode(picture, "PNG")
        async with running(fast_resize=True) as guard:
            there = (await guard.read(data)).pixels
        assert (there == to_pixels(picture, PREPROCESS, fast=True)).all()
        assert (there != to_pixels(picture, PREPROCESS)).any()

    run(test)


def test_no_file_costs_the_servers_process_much() -> None:
    async def test() -> None:
        async with running(seconds=1) as guard:
            for name, data in hostile().items():
                assert len(data) <= 20 * MEGABYTE, name
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                cpu = time.process_time()
                with suppress(ServiceError):
                    await guard.read(data)
                assert time.process_time() - cpu < 0.1, name
                assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 1024, name
            assert guard.ready
            assert (await guard.read(plain((1, 2, 3)))).width == 24

    run(test)


def test_a_picture_out_of_its_time_is_told_so() -> None:
    async def test() -> None:
        async with running(seconds=1) as guard:
            error = await error_of(guard, SCANS)
            assert (error.status, error.code) == (422, "too_costly")
            assert "1 seconds" in error.detail
            assert ended(guard, "time") == 1
            assert (await guard.read(plain((1, 2, 3)))).width == 24

    run(test)


def test_a_picture_out_of_its_memory_is_told_so() -> None:
    lossless = encode(Image.new("RGBA", (7000, 7000)), "WEBP", lossless=True, quality=0, method=0)
    assert len(lossless) < 100

    async def test() -> None:
        async with running(memory_mb=256) as guard:
            assert isinstance(await error_of(guard, lossless), TooCostly)
            assert (await guard.read(plain((1, 2, 3), "WEBP"))).width == 24

    run(test)


def test_what_needs_more_than_the_first_share_of_memory_gets_all_of_it() -> None:
    large = encode(Image.new("RGB", (7000, 6000), (9, 8, 7)), "PNG")  # 168 MB, and a quarter of 512 are 128

    async def test() -> None:
        async with running(memory_mb=512) as guard:
            assert (await guard.read(large)).pixels[9, 9].tolist() == [9, 8, 7]

    run(test)


def test_an_ordinary_picture_is_answered_beside_hostile_ones() -> None:
    async def test() -> None:
        async with running(workers=3, max_costly=16) as guard:
            slow = [asyncio.ensure_future(guard.read(SCANS)) for _ in range(16)]
            await asyncio.sleep(0)
            for _ in range(3):
                assert (await guard.read(plain((1, 2, 3), "JPEG"))).width == 24
            assert not any(task.done() for task in slow)  # they take minutes
            assert guard.ready
            for task in slow:
                task.cancel()
            # What nobody waits for any more is ended.
            await until(lambda: not any(worker.job for worker in guard._running) and len(guard._running) == 3)
            assert ended(guard, "unwanted") > 0

    run(test)


def test_a_picture_that_nobody_waits_for_leaves_the_queues_at_once() -> None:
    async def test() -> None:
        async with running(workers=2, max_costly=16) as guard:
            slow = [asyncio.ensure_future(guard.read(SCANS)) for _ in range(4)]
            await until(lambda: len(guard._costly) == 2)  # the others are at work
            waiting = [job.future for job in guard._costly]
            fresh = [asyncio.ensure_future(guard.read(SCANS)) for _ in range(3)]
            await asyncio.sleep(0)
            assert guard._fresh
            for task in (*slow, *fresh):
                task.cancel()
            await asyncio.gather(*slow, *fresh, return_exceptions=True)
            assert all(future.cancelled() for future in waiting)
            assert not guard._costly
            assert not guard._fresh

    run(test)


def test_costly_pictures_all_get_their_turn_and_too_many_are_refused() -> None:
    costly = many_scans(1000, 300)

    async def test() -> None:
        async with running(workers=2, max_costly=2) as guard:
            answers = await asyncio.gather(*(guard.read(costly) for _ in range(9)), return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, Overloaded)]
            read = [answer for answer in answers if isinstance(answer, Decoded)]
            assert len(refused) + len(read) == 9
            assert read
            if refused:
                assert refused[0].retry_after
        async with running(workers=2, max_costly=9) as guard:
            await asyncio.gather(*(guard.read(costly) for _ in range(9)))

    run(test)


def test_a_worker_that_is_killed_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with running(seconds=2) as guard:
            task = asyncio.ensure_future(guard.read(SCANS))
            kill(await decoding(guard))
            with pytest.raises(TooCostly):  # the second attempt's own answer
                await task
            assert ended(guard, "killed") == 1
            assert "a decoder ended (killed" in caplog.text

            task = asyncio.ensure_future(guard.read(SCANS))
            for _ in range(2):
                worker = await decoding(guard)
                kill(worker)
                await until(lambda gone=worker: gone not in guard._running)  # type: ignore[misc]
            with pytest.raises(DecoderFailed) as caught:
                await task
            assert (caught.value.status, caught.value.retry_after) == (503, 1)

            await until(lambda: all(worker.pid > 0 for worker in guard._running))
            for worker in guard._running:
                kill(worker)  # idle
            assert (await guard.read(plain((1, 2, 3)))).width == 24

    run(test)


def test_a_costly_picture_is_left_alone_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, check = 0, Guard._check_progress

    def counting(guard: Guard, worker: module.Worker) -> None:
        nonlocal looks
        looks += 1
        check(guard, worker)

    monkeypatch.setattr(Guard, "_check_progress", counting)

    async def test() -> None:
        async with running() as guard:
            task = asyncio.ensure_future(guard.read(SCANS))
            await until(lambda: any(worker.job and worker.job.costly for worker in guard._running))
            before = looks
            assert before > 1
            await asyncio.sleep(8 * module.QUICK)
            assert looks == before
            task.cancel()
            await until(lambda: ended(guard, "unwanted") == 1)

    run(test)


def test_no_memory_for_a_picture_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "no space")

    async def test() -> None:
        async with running() as guard:
            with monkeypatch.context() as patched:
                patched.setattr(os, "pwrite", full)
                assert isinstance(await error_of(guard, plain((1, 2, 3))), DecoderFailed)
            assert (await guard.read(plain((1, 2, 3)))).width == 24

    run(test)


def test_a_crash_is_the_pictures_doing() -> None:
    async def test() -> None:
        async with running() as guard:
            task = asyncio.ensure_future(guard.read(SCANS))
            for _ in range(2):  # the second time with all the memory that there is
                worker = await decoding(guard)
                kill(worker, signal.SIGSEGV)
                await until(lambda gone=worker: gone not in guard._running)  # type: ignore[misc]
            with pytest.raises(BrokenImage, match="crashed"):
                await task

    run(test)


def test_the_process_that_forks_is_replaced() -> None:
    async def test() -> None:
        async with running() as guard:
            assert guard._process is not None
            first = guard._process.pid
            task = asyncio.ensure_future(guard.read(plain((1, 2, 3))))
            os.kill(first, signal.SIGKILL)
            assert (await task).width == 24
            assert (await guard.read(plain((1, 2, 3)))).width == 24
            await until(lambda: guard._process is not None and guard._process.pid != first and guard.ready)
            assert (await guard.read(plain((1, 2, 3)))).width == 24

    run(test)


def test_what_cannot_start_is_said_at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "import_path", lambda: ["/nowhere"])
    monkeypatch.setattr(module.sys, "executable", "/bin/false")

    async def test() -> None:
        guard = make()
        with pytest.raises(DecoderFailed):
            await guard.start()
        assert not guard.ready
        with pytest.raises(DecoderFailed):
            await guard.read(plain((1, 2, 3)))

    run(test)
    assert "ended" in caplog.text


SERVER = """
import asyncio, os, signal
from tests.app.pictures.test_decoder import children
from tests.app.pictures.test_guard import SCANS, make

async def main():
    guard = make(seconds=600)
    await guard.start()
    task = asyncio.ensure_future(guard.read(SCANS))
    await asyncio.sleep(0.2)
    print(*[child.pid for child in children(os.getpid())], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_they_end_with_a_server_that_is_killed() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        server.wait(60)
    assert len(pids) == 3
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(60)


def test_nothing_is_imported_from_the_folder_that_the_server_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("struct.py", "app/__init__.py", "app/pictures/decoder.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])

    async def test() -> None:
        async with running() as guard:
            assert (await guard.read(plain((1, 2, 3), "WEBP"))).width == 24

    run(test)


def test_answers_never_cross() -> None:
    rng = random.Random(0)
    colours = [(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(120)]

    async def test() -> None:
        async with running(workers=3) as guard:

            async def ask(colour: tuple[int, int, int]) -> bool:
                if colour[0] < 30:  # every eighth is broken
                    return isinstance(await error_of(guard, plain(colour)[:-30]), BrokenImage)
                if colour[0] < 60:  # and every eighth leaves
                    task = asyncio.ensure_future(guard.read(plain(colour)))
                    await asyncio.sleep(0)
                    task.cancel()
                    return True
                return bool((await guard.read(plain(colour))).pixels[9, 9].tolist() == list(colour))

            assert all(await asyncio.gather(*(ask(colour) for colour in colours)))

    run(test)


def test_a_worker_that_answers_nonsense_is_not_believed() -> None:
    async def test() -> None:
        async with running() as guard:
            job = module.Job(b"x", asyncio.get_running_loop().create_future())
            worker = guard._running[0]
            for reply in (REPLY.pack(0, 99, 1, 1, 0.0, False), REPLY.pack(77, 0, 1, 1, 0.0, False)):
                with pytest.raises((ValueError, LookupError)):
                    guard._complete(worker, job, reply)
            assert not job.future.done()
            job.future.cancel()

    run(test)


def test_metrics_name_what_ended() -> None:
    metrics = Metrics()
    metrics.decoders_ended.labels("time").inc()
    assert b'caption_decoders_ended_total{reason="time"} 1.0' in generate_latest(metrics.registry)
