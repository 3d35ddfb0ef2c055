"""Many requests share the engine: their pictures are batched, bounded, timed and kept apart.

Each of the engine's lanes has a thread, which takes what waits longest as soon as it is free, and captions it:
one picture, or on an engine that gains from batches as many as wait. So no lane is idle beside work, a lone
picture waits for nothing, and batches grow by themselves under load. What the threads share is behind one
lock; futures belong to the event loop and are set there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import InferenceFailed, NotReady, Overloaded
from app.metrics import Metrics
from model.caption import Caption
from model.config import SearchConfig
from model.runtime.cpu import own_cpus, stay_on
from model.runtime.engine import CaptionEngine, Lane, Regions

logger = logging.getLogger("app.batching")

LINGER = 5.0  # seconds that the lanes get at the end for work that nobody waits for any more


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
    since: float = field(default_factory=time.perf_counter)  # when it began to wait for its present stage
    waited: float = 0.0  # for the stages before

    @property
    def wanted(self) -> bool:
        """False once its caller has gone, timed out or been answered."""
        return not self.future.done()

    @property
    def wish(self) -> tuple[SearchConfig, bool]:
        """What pictures that are searched together have in common."""
        return self.search, self.explain


Line = deque[Item]  # the waiting pictures of one request


@dataclass(frozen=True, slots=True)
class Encoded:
    """Pictures that were encoded together, and the seconds that took."""

    regions: Regions
    batch: list[Item]
    seconds: float


class Batcher:
    """Feeds a `CaptionEngine`'s lanes from a bounded queue, one request's pictures in turn with the others'."""

    def __init__(
        self, engine: CaptionEngine, metrics: Metrics, *, batch_size: int, queue_size: int, batch_wait: float = 0
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self.batch_size = batch_size
        self.queue_size = queue_size
        self.batch_wait = batch_wait  # seconds
        self.admitted = 0  # pictures accepted and not yet answered
        self._lines: deque[Line] = deque()  # those that are not empty, each once
        self._busy: dict[Lane, float] = {}  # since when
        self._due = threading.Condition()  # guards all that, and wakes lanes that are free
        self._seconds_per_picture = 0.0  # smoothed, for Retry-After
        self._stopping = False
        self._threads: list[threading.Thread] = []  # while running
        self._loop: asyncio.AbstractEventLoop
        self._empty: asyncio.Event

    def start(self) -> None:
        """Begin to take work; to be called in the event loop."""
        self._loop, self._empty = asyncio.get_running_loop(), asyncio.Event()
        self._empty.set()
        cpus = own_cpus(len(self.engine.lanes)) or []
        for number, lane in enumerate(self.engine.lanes):
            # Daemons, and not waited for at any price: an engine that hangs must not keep the process.
            arguments = (lane, set(cpus), set(cpus[number : number + 1]))
            thread = threading.Thread(target=self._serve, args=arguments, name=f"lane-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    async def stop(self) -> None:
        """Let accepted work finish, then let the lanes' threads go."""
        while self.admitted:
            await self._empty.wait()
        with self._due:
            self._stopping = True
            self._due.notify_all()
        end = time.monotonic() + LINGER
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(end - time.monotonic(), 0))
        self._threads = []

    @property
    def engine_seconds(self) -> float:
        """How long the engine has been busy with the oldest work that it is at; 0 while it is idle."""
        with self._due:
            return time.perf_counter() - min(self._busy.values()) if self._busy else 0.0

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
        if self._stopping or not self._threads or not all(thread.is_alive() for thread in self._threads):
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
        item = Item(pixels, search, explain, self._loop.create_future())
        with self._due:
            line.append(item)
            if len(line) == 1:
                self._lines.append(line)
            self._due.notify()
        return await item.future

    def _count(self, pictures: int) -> None:
        with self._due:
            self.admitted += pictures
            if pictures < 0 and self.engine.gains_from_batches:
                self._due.notify_all()  # a batch waits only for pictures that may yet come
        self.metrics.admitted.inc(pictures)
        if self.admitted:
            self._empty.clear()
        else:
            self._empty.set()

    # --- in the lanes' threads -------------------------------------------------------------------

    def _serve(self, lane: Lane, all_cpus: set[int], own_cpu: set[int]) -> None:
        """Caption what is due, as soon as there is something, until the end.

        Left alone, the scheduler puts a lane beside another that has just woken it, and leaves it there while a CPU
        is idle: a tenth of the time with two. So lanes keep to a CPU each, except for a picture that has all of them.
        """
        place = all_cpus
        while due := self._wait(lane):
            batch, alone = due
            if place != (place := all_cpus if alone else own_cpu):
                stay_on(place)
            try:
                self._caption(lane, self.engine if alone else lane, batch)
            except Exception:
                logger.exception("unexpected error")
            with self._due:
                del self._busy[lane]

    def _wait(self, lane: Lane) -> tuple[list[Item], bool] | None:
        """What the lane is to caption next, and whether with all of the device; None at the end."""
        with self._due:
            while not (batch := self._next()):
                if self._stopping:
                    return None
                self._due.wait()
            alone = self.admitted <= 1 and not self._busy
            self._busy[lane] = time.perf_counter()
            return batch, alone

    def _next(self) -> list[Item]:
        """This lane's share of what is due. A batch waits a little for pictures that are being decoded."""
        end = time.monotonic() + self.batch_wait
        while self.engine.gains_from_batches and 0 < self._waiting < min(self.admitted, self.batch_size):
            left = end - time.monotonic()
            if left <= 0:
                break
            self._due.wait(left)
        return self._take(min(math.ceil(self._waiting / len(self.engine.lanes)), self.batch_size))

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._lines))

    def _take(self, count: int) -> list[Item]:
        """Up to `count` of the pictures that wait, one of each request in turn, the longest waiting request first."""
        batch: list[Item] = []
        while self._lines and len(batch) < count:
            line = self._lines.popleft()
            item = line.popleft()
            if line:
                self._lines.append(line)
            if item.wanted:
                batch.append(item)
        return batch

    def _caption(self, lane: Lane, encoder: Lane, batch: list[Item]) -> None:
        """Encode pictures, then search for the captions of those that want the same."""
        start = _begin(batch)
        try:
            regions = encoder.encode(np.stack([item.pixels for item in batch]))
        except Exception as error:
            self._one_by_one(batch, error, lambda row: self._caption(lane, encoder, [batch[row]]))
            return
        seconds = time.perf_counter() - start
        self.metrics.stage("encode", seconds)
        for item in batch:
            item.since = start + seconds
        wishes: dict[Any, list[int]] = {}
        for row, item in enumerate(batch):
            wishes.setdefault(item.wish, []).append(row)
        for rows in wishes.values():
            self._search(lane, Encoded(regions, batch, seconds), rows)

    def _search(self, lane: Lane, encoded: Encoded, rows: list[int]) -> None:
        """Search for the captions of those pictures at `rows` that are still wanted; all want the same."""
        rows = [row for row in rows if encoded.batch[row].wanted]
        if not rows:
            return
        batch = [encoded.batch[row] for row in rows]
        start = _begin(batch)
        try:
            regions = encoded.regions if len(rows) == len(encoded.batch) else encoded.regions.select(rows)
            captions = lane.generate(regions, *batch[0].wish)
            _check(captions, batch)
        except Exception as error:
            self._one_by_one(batch, error, lambda i: self._search(lane, encoded, [rows[i]]))
            return
        self._answer(batch, captions, encoded.seconds, time.perf_counter() - start)

    def _one_by_one(self, batch: list[Item], error: Exception, alone: Callable[[int], None]) -> None:
        """One bad picture must not fail its neighbours: after a failed batch each is tried alone."""
        if len(batch) > 1:
            logger.warning("a batch of %d failed and is tried one by one: %r", len(batch), error)
            for i, item in enumerate(batch):
                if item.wanted:
                    alone(i)
            return
        logger.error("the engine failed on a picture", exc_info=error)
        self._post(_fail, batch[0])

    def _answer(self, batch: list[Item], captions: list[list[Caption]], encode: float, generate: float) -> None:
        self.metrics.batch_size.observe(len(batch))
        self.metrics.stage("generate", generate)
        per_picture = (encode + generate) / len(batch) / len(self.engine.lanes)
        with self._due:
            self._seconds_per_picture += 0.2 * (per_picture - self._seconds_per_picture)
        answers = [Answer(mine, item.waited, encode, generate) for item, mine in zip(batch, captions, strict=True)]
        self._post(_succeed, batch, answers)

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        """Let the event loop call `function`; nobody waits for it any more if the loop is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


def _succeed(batch: list[Item], answers: list[Answer]) -> None:
    for item, answer in zip(batch, answers, strict=True):
        if item.wanted:
            item.future.set_result(answer)


def _fail(item: Item) -> None:
    if item.wanted:
        item.future.set_exception(InferenceFailed("the model failed on this picture"))


def _begin(batch: list[Item]) -> float:
    """Now, when `batch` waits no longer."""
    now = time.perf_counter()
    for item in batch:
        item.waited, item.since = item.waited + now - item.since, now
    return now


def _check(captions: list[list[Caption]], batch: list[Item]) -> None:
    if len(captions) != len(batch) or not all(captions):
        raise RuntimeError("the engine did not answer for every picture")
