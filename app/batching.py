"""Many requests share the engine: their pictures are batched, bounded, timed and kept apart.

Each of the engine's lanes has a thread, which does whatever is due when it becomes free. While pictures wait it
encodes them, until about half of those in the house are encoded; then it searches for the captions of all that
want the same search, since several cost a step little more than one. So no lane is idle beside work, a lone
picture waits for nothing, and batches grow by themselves under load. What the threads share is behind one lock;
futures belong to the event loop and are set there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.errors import InferenceFailed, NotReady, Overloaded
from app.metrics import Metrics
from model.caption import Caption
from model.config import SearchConfig
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
    encoding: float = 0.0
    lane_seconds: float = 0.0  # of encoding, its share of a batch
    place: tuple[Regions, int] | None = None  # once it is encoded: with whom, and in which row

    @property
    def wanted(self) -> bool:
        """False once its caller has gone, timed out or been answered."""
        return not self.future.done()

    @property
    def wish(self) -> tuple[SearchConfig, bool]:
        """What pictures that are searched together have in common."""
        return self.search, self.explain


Line = deque[Item]  # the waiting pictures of one request
Stage = Callable[[Lane, list[Item]], None]


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
        self._encoded: list[Item] = []  # waiting for their search, the longest waiting first
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
        for number, lane in enumerate(self.engine.lanes):
            # Daemons, and not waited for at any price: an engine that hangs must not keep the process.
            thread = threading.Thread(target=self._serve, args=(lane,), name=f"lane-{number}", daemon=True)
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
            if pictures < 0 and self.engine.encodes_together:
                self._due.notify_all()  # a batch waits only for pictures that may yet come
        self.metrics.admitted.inc(pictures)
        if self.admitted:
            self._empty.clear()
        else:
            self._empty.set()

    # --- in the lanes' threads -------------------------------------------------------------------

    def _serve(self, lane: Lane) -> None:
        while self._work(lane):
            pass

    def _work(self, lane: Lane) -> bool:
        """Do what is due next, as soon as there is something; false at the end."""
        with self._due:
            while True:
                self._company()
                if stage := self._next(lane):
                    break
                if self._stopping:
                    return False
                self._due.wait()
            self._busy[lane] = time.perf_counter()
        try:
            stage()
        except Exception:
            logger.exception("unexpected error")
        with self._due:
            del self._busy[lane]
        return True

    def _company(self) -> None:
        """Where pictures are encoded at once, let those that are being decoded join those that wait."""
        end = time.monotonic() + self.batch_wait
        while self.engine.encodes_together and not self._encoded:
            left = end - time.monotonic()
            if left <= 0 or not 0 < sum(map(len, self._lines)) < min(self.admitted, self.batch_size):
                return
            self._due.wait(left)

    def _next(self, lane: Lane) -> Callable[[], None] | None:
        """What is due."""
        self._encoded = [item for item in self._encoded if item.wanted]
        if len(self._encoded) < min(math.ceil(self.admitted / 2), self.batch_size):
            batch = self._take(self.batch_size if self.engine.encodes_together else 1)
            if batch:
                alone = self.admitted <= 1 and not self._busy
                return partial(self._encode, self.engine.alone if alone else lane, batch)
        return partial(self._search, lane, self._take_encoded()) if self._encoded else None

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

    def _take_encoded(self) -> list[Item]:
        """Those that want the same as the one that waits longest; a share of them where lanes would have no work."""
        group = [item for item in self._encoded if item.wish == self._encoded[0].wish]
        shares = 1 if self._lines else len(self.engine.lanes) - len(self._busy)
        batch = group[: min(math.ceil(len(group) / shares), self.batch_size)]
        self._encoded = [item for item in self._encoded if item not in batch]
        return batch

    def _encode(self, lane: Lane, batch: list[Item]) -> None:
        start = _begin(batch)
        try:
            regions = lane.encode(np.stack([item.pixels for item in batch]))
        except Exception as error:
            self._one_by_one(self._encode, lane, batch, error)
            return
        now = time.perf_counter()
        self.metrics.stage("encode", now - start)
        for row, item in enumerate(batch):
            item.place, item.since = (regions, row), now
            item.encoding, item.lane_seconds = now - start, (now - start) / len(batch)
        with self._due:
            self._encoded += batch
            self._due.notify(len(batch) - 1)  # this lane comes back by itself

    def _search(self, lane: Lane, batch: list[Item]) -> None:
        start = _begin(batch)
        try:
            captions = lane.generate(_regions(batch), *batch[0].wish)
            _check(captions, batch)
        except Exception as error:
            self._one_by_one(self._search, lane, batch, error)
            return
        self._answer(batch, captions, time.perf_counter() - start)

    def _one_by_one(self, stage: Stage, lane: Lane, batch: list[Item], error: Exception) -> None:
        """One bad picture must not fail its neighbours: after a failed batch each is tried alone."""
        if len(batch) > 1:
            logger.warning("a batch of %d failed and is tried one by one: %r", len(batch), error)
            for item in batch:
                if item.wanted:
                    stage(lane, [item])
            return
        logger.error("the engine failed on a picture", exc_info=error)
        self._post(_fail, batch[0])

    def _answer(self, batch: list[Item], captions: list[list[Caption]], seconds: float) -> None:
        self.metrics.batch_size.observe(len(batch))
        self.metrics.stage("generate", seconds)
        per_picture = (batch[0].lane_seconds + seconds / len(batch)) / len(self.engine.lanes)
        with self._due:
            self._seconds_per_picture += 0.2 * (per_picture - self._seconds_per_picture)
        answers = [Answer(a, item.waited, item.encoding, seconds) for item, a in zip(batch, captions, strict=True)]
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


def _regions(batch: list[Item]) -> Regions:
    """The encoded pictures of `batch`, in its order."""
    parts = []
    for _, places in itertools.groupby((item.place for item in batch if item.place), lambda place: id(place[0])):
        together = list(places)
        regions, rows = together[0][0], [row for _, row in together]
        parts.append(regions if rows == list(range(len(regions))) else regions.select(rows))
    return parts[0] if len(parts) == 1 else parts[0].join(parts)


def _check(captions: list[list[Caption]], batch: list[Item]) -> None:
    if len(captions) != len(batch) or not all(captions):
        raise RuntimeError("the engine did not answer for every picture")
