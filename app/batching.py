"""Many requests share the engine: their pictures are batched, bounded, timed and kept apart.

A batch takes whatever waits when the engine becomes free, and lets pictures that are being decoded
then join in. So an idle service adds no wait, and under load batches grow by themselves: the next one
gathers while the last one runs. All state belongs to the event loop; only `encode` and `generate` run
elsewhere, in the engine's one thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from app.errors import InferenceFailed, NotReady, Overloaded
from app.metrics import Metrics
from model.caption import Caption
from model.config import SearchConfig
from model.runtime.engine import CaptionEngine, Regions

logger = logging.getLogger("app.batching")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """One picture's captions, best first, and the seconds it waited and its batch took."""

    captions: list[Caption]
    queue: float
    encode: float
    generate: float


@dataclass(eq=False, slots=True)
class Item:
    """One picture on its way through the engine."""

    pixels: NDArray[np.uint8]  # (size, size, 3)
    search: SearchConfig
    explain: bool
    future: asyncio.Future[Answer]
    queued_at: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    encoding: float = 0.0

    @property
    def wanted(self) -> bool:
        """False once its caller has gone, timed out or been answered."""
        return not self.future.done()


Line = deque[Item]  # the waiting pictures of one request


class Batcher:
    """Feeds a `CaptionEngine` from a bounded queue, one request's pictures in turn with the others'."""

    def __init__(
        self, engine: CaptionEngine, metrics: Metrics, *, batch_size: int, queue_size: int, batch_wait: float = 0
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self.batch_size = batch_size
        self.queue_size = queue_size
        self.batch_wait = batch_wait  # seconds
        self.draining = False
        self.admitted = 0  # pictures accepted and not yet answered
        self._lines: deque[Line] = deque()  # those that are not empty, each once
        self._seconds_per_picture = 0.0  # smoothed, for Retry-After
        self._work = asyncio.Event()
        self._engine_since: float | None = None  # when the call that the engine is busy with began
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take work; to be called in the event loop."""
        self._runner = asyncio.create_task(self._run(), name="batcher")

    async def stop(self) -> None:
        """Let accepted work finish, then let the engine's thread go."""
        self.draining = True
        self._work.set()
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()

    @property
    def engine_seconds(self) -> float:
        """How long the engine has been busy with the call that it is in; 0 while it is idle."""
        return 0.0 if self._engine_since is None else time.perf_counter() - self._engine_since

    @contextmanager
    def admit(self, pictures: int = 1) -> Iterator[None]:
        """Hold room for `pictures`, from a read body to its answer; raises `Overloaded` or `NotReady` at once."""
        self.check(pictures)
        self._count(pictures)
        try:
            yield
        finally:
            self._count(-pictures)

    def check(self, pictures: int = 1) -> None:
        """Raise `Overloaded` if there is no room for `pictures` now, `NotReady` once stopped."""
        if self._runner is None or self._runner.done():
            raise NotReady("the service is stopping")
        if self.admitted + pictures > self.queue_size:
            self.metrics.rejected.labels("overloaded").inc()
            wait = math.ceil(self.admitted * self._seconds_per_picture)
            raise Overloaded(f"{self.admitted} pictures are waiting already", retry_after=min(max(wait, 1), 60))

    async def submit(
        self, pixels: NDArray[np.uint8], search: SearchConfig, explain: bool, line: Line | None = None
    ) -> Answer:
        """Caption one picture, (size, size, 3); raises `InferenceFailed` if the engine cannot.

        line: the queue of the picture's request, if it has others: requests take turns, so one with
            many pictures does not hold up those with one.
        A cancelled caller's picture leaves the queue without entering a batch.
        """
        line = deque() if line is None else line
        item = Item(pixels, search, explain, asyncio.get_running_loop().create_future())
        line.append(item)
        if len(line) == 1:
            self._lines.append(line)
        self._work.set()
        return await item.future

    async def _run(self) -> None:
        while True:
            await self._company()
            batch = self._take()
            if batch:
                await self._caption(batch)
            elif self.draining and self.admitted == 0:
                return
            else:
                self._work.clear()
                await self._work.wait()

    async def _company(self) -> None:
        """Let pictures that are being decoded join those that wait: several cost a step little more than one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.batch_wait):
                while 0 < sum(map(len, self._lines)) < min(self.admitted, self.batch_size):
                    self._work.clear()
                    await self._work.wait()

    def _take(self) -> list[Item]:
        """The next batch: one picture of each request in turn, the longest waiting request first."""
        batch: list[Item] = []
        while self._lines and len(batch) < self.batch_size:
            line = self._lines.popleft()
            item = line.popleft()
            if line:
                self._lines.append(line)
            if item.wanted:
                batch.append(item)
        return batch

    async def _caption(self, batch: list[Item]) -> None:
        """Encode `batch` at once, then search each group of equal wishes, the cheapest group first."""
        start = time.perf_counter()
        self.metrics.batch_size.observe(len(batch))
        for item in batch:
            item.waited = start - item.queued_at
        try:
            regions = await self._in_engine(self.engine.encode, np.stack([item.pixels for item in batch]))
        except Exception as error:
            await self._one_by_one(batch, error)
            return
        encoding = time.perf_counter() - start
        self.metrics.stage("encode", encoding)
        for item in batch:
            item.encoding = encoding
        groups: dict[tuple[SearchConfig, bool], list[int]] = {}
        for row, item in enumerate(batch):
            groups.setdefault((item.search, item.explain), []).append(row)
        for search, explain in sorted(groups, key=_cost):
            rows = [row for row in groups[search, explain] if batch[row].wanted]
            if rows:
                chosen = regions if len(rows) == len(batch) else regions.select(rows)
                await self._search([batch[row] for row in rows], chosen, search, explain)
        seconds = (time.perf_counter() - start) / len(batch)
        self._seconds_per_picture += 0.2 * (seconds - self._seconds_per_picture)

    async def _search(self, items: list[Item], regions: Regions, search: SearchConfig, explain: bool) -> None:
        start = time.perf_counter()
        try:
            captions = await self._in_engine(lambda: self.engine.generate(regions, search, explain))
            if len(captions) != len(items) or not all(captions):
                raise RuntimeError("the engine did not answer for every picture")
        except Exception as error:
            await self._one_by_one(items, error)
            return
        seconds = time.perf_counter() - start
        self.metrics.stage("generate", seconds)
        for item, answer in zip(items, captions, strict=True):
            if item.wanted:
                item.future.set_result(Answer(answer, item.waited, item.encoding, seconds))

    async def _one_by_one(self, items: list[Item], error: Exception) -> None:
        """One bad picture must not fail its neighbours: after a failed batch each is tried alone."""
        if len(items) > 1:
            logger.warning("a batch of %d failed and is tried one by one: %r", len(items), error)
            for item in items:
                if item.wanted:
                    await self._caption([item])
            return
        logger.error("the engine failed on a picture", exc_info=error)
        if items[0].wanted:
            items[0].future.set_exception(InferenceFailed("the model failed on this picture"))

    async def _in_engine(self, function: Callable[..., T], *args: object) -> T:
        self._engine_since = time.perf_counter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        finally:
            self._engine_since = None

    def _count(self, pictures: int) -> None:
        self.admitted += pictures
        self.metrics.admitted.inc(pictures)
        self._work.set()  # a drain waits for the count to reach zero


def _cost(group: tuple[SearchConfig, bool]) -> int:
    search, explain = group
    return search.beam_size * search.max_length * (2 if explain else 1)
