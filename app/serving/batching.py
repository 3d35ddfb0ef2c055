"""Many requests share the engine: their pictures are batched, bounded, timed and kept apart.

Each of the engine's lanes has a thread, which takes its share of what waits as soon as it is free, encodes those
pictures and searches for their captions. So no lane is idle beside work, a lone picture waits for nothing, and
batches grow by themselves under load. What the threads share is behind one lock; futures belong to the event
loop and are set there.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import InferenceFailed, NotReady, Overloaded
from app.metrics import Metrics
from model.caption import Caption
from model.config import SearchConfig
from model.runtime.cpu import own_cpus, pin_thread
from model.runtime.engine import CaptionEngine, Lane, Regions

logger = logging.getLogger("app.batching")

JOIN_SECONDS = 5.0  # seconds that the lanes get at the end for work that nobody waits for any more


@dataclass(frozen=True, slots=True)
class Answer:
    """One picture's captions, best first, its tags' probabilities, and the seconds it waited and its batch took."""

    captions: list[Caption]
    queue: float
    encode: float
    generate: float
    tags: NDArray[np.float32]  # (G,), of `config.tags`


@dataclass(eq=False, slots=True)
class Item:
    """One picture on its way through the engine."""

    pixels: NDArray[np.uint8]  # (size, size, 3)
    search_config: SearchConfig
    explain: bool
    future: asyncio.Future[Answer]
    since: float = field(default_factory=time.perf_counter)  # when it began to wait for its present stage
    waited: float = 0.0  # for the stages before

    @property
    def wanted(self) -> bool:
        """False once its caller has gone, timed out or been answered."""
        return not self.future.done()

    @property
    def group_key(self) -> tuple[SearchConfig, bool]:
        """What pictures that are searched together have in common."""
        return self.search_config, self.explain


RequestQueue = deque[Item]  # the waiting pictures of one request


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded picture: its batch and its row there, and the seconds that the whole batch took."""

    item: Item
    regions: Regions
    row: int
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
        self._request_queues: deque[RequestQueue] = deque()  # those that are not empty, each once
        self._busy: dict[Lane, float] = {}  # since when
        self._condition = threading.Condition()  # guards all that, and wakes lanes that are free
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
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        end = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(end - time.monotonic(), 0))
        self._threads = []

    @property
    def engine_seconds(self) -> float:
        """How long the engine has been busy with the oldest work that it is at; 0 while it is idle."""
        with self._condition:
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
        self,
        pixels: NDArray[np.uint8],
        search_config: SearchConfig,
        explain: bool,
        request_queue: RequestQueue | None = None,
    ) -> Answer:
        """Caption one picture, (size, size, 3); raises `InferenceFailed` if the engine cannot.

        request_queue: the queue of the picture's request, if it has others: requests take turns, so one with
            many pictures does not hold up those with one.
        A cancelled caller's picture leaves the queue without entering a batch.
        """
        request_queue = deque() if request_queue is None else request_queue
        item = Item(pixels, search_config, explain, self._loop.create_future())
        with self._condition:
            request_queue.append(item)
            if len(request_queue) == 1:
                self._request_queues.append(request_queue)
            self._condition.notify()
        try:
            return await item.future
        finally:
            self._withdraw(item, request_queue)

    def _withdraw(self, item: Item, request_queue: RequestQueue) -> None:
        """Take a picture that nobody waits for from its queue: its pixels would stay while the engine is busy."""
        with self._condition:
            if item in request_queue:
                request_queue.remove(item)
                if not request_queue:
                    self._request_queues.remove(request_queue)

    def _count(self, pictures: int) -> None:
        with self._condition:
            self.admitted += pictures
            if pictures < 0 and self.engine.gains_from_batches:
                self._condition.notify_all()  # a batch waits only for pictures that may yet come
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
        while work := self._wait(lane):
            batch, share, whole_device = work
            if place != (place := all_cpus if whole_device else own_cpu):
                pin_thread(place)
            try:
                self._caption(lane, self.engine if whole_device else lane, batch, share)
            except Exception:
                logger.exception("unexpected error")
            with self._condition:
                del self._busy[lane]

    def _wait(self, lane: Lane) -> tuple[list[Item], int, bool] | None:
        """What the lane is to caption next, how many in all, and whether with all of the device; None at the end."""
        with self._condition:
            while True:
                self._gather_batch()
                share = min(math.ceil(self._waiting / len(self.engine.lanes)), self.batch_size)
                if share > self.engine.searched_at_once:  # whole searches: what is left over is searched for apart
                    share -= share % self.engine.searched_at_once
                if batch := self._dequeue(share if self.engine.gains_from_batches else 1):
                    break
                if self._stopping:
                    return None
                self._condition.wait()
            whole_device = self.admitted <= 1 and not self._busy
            self._busy[lane] = time.perf_counter()
            return batch, share, whole_device

    def _gather_batch(self) -> None:
        """Where batches gain, let pictures that are being decoded join those that wait."""
        end = time.monotonic() + self.batch_wait
        while self.engine.gains_from_batches and 0 < self._waiting < min(self.admitted, self.batch_size):
            left = end - time.monotonic()
            if left <= 0:
                return
            self._condition.wait(left)

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._request_queues))

    def _dequeue(self, count: int) -> list[Item]:
        """Up to `count` of the pictures that wait, one of each request in turn, the longest waiting request first."""
        batch: list[Item] = []
        while self._request_queues and len(batch) < count:
            request_queue = self._request_queues.popleft()
            item = request_queue.popleft()
            if request_queue:
                self._request_queues.append(request_queue)
            if item.wanted:
                batch.append(item)
        return batch

    def _caption(self, lane: Lane, encoder: Lane, batch: list[Item], share: int) -> None:
        """Encode these pictures and others up to the lane's share, then search for the captions of them all."""
        encoded = self._encode(encoder, batch)
        # One by one, where that is as fast: a lane that is done sooner takes more of them.
        while len(encoded) < share and not self.engine.gains_from_batches:
            with self._condition:
                batch = self._dequeue(1)
            if not batch:
                break
            encoded += self._encode(encoder, batch)
        groups: dict[Any, list[Encoded]] = {}
        for one in encoded:
            groups.setdefault(one.item.group_key, []).append(one)
        for group in groups.values():
            self._generate(lane, [one for one in group if one.item.wanted])

    def _encode(self, encoder: Lane, batch: list[Item]) -> list[Encoded]:
        """The pictures that can be encoded; the callers of the others get an error."""
        start = _begin(batch)
        try:
            regions = encoder.encode(np.stack([item.pixels for item in batch]))
        except Exception as error:
            return [one for item in self._one_by_one(batch, error) for one in self._encode(encoder, [item])]
        seconds = time.perf_counter() - start
        self.metrics.stage("encode", seconds)
        for item in batch:
            item.since = start + seconds
        return [Encoded(item, regions, row, seconds) for row, item in enumerate(batch)]

    def _generate(self, lane: Lane, group: list[Encoded]) -> None:
        """Search for the captions of pictures that all want the same, and answer."""
        if not group:
            return
        batch = [one.item for one in group]
        start = _begin(batch)
        try:
            regions = _regions(group)
            captions, tags = lane.generate(regions, *batch[0].group_key), self.engine.tags(regions)
            _check(captions, batch)
        except Exception as error:
            retried = self._one_by_one(batch, error)
            for one in group:
                if one.item in retried:
                    self._generate(lane, [one])
            return
        seconds = time.perf_counter() - start
        self.metrics.batch_size.observe(len(batch))
        self.metrics.stage("generate", seconds)
        per_picture = (
            (sum(one.seconds / len(one.regions) for one in group) + seconds) / len(batch) / len(self.engine.lanes)
        )
        with self._condition:
            self._seconds_per_picture += 0.2 * (per_picture - self._seconds_per_picture)
        answers = [
            Answer(mine, one.item.waited, one.seconds, seconds, its)
            for one, mine, its in zip(group, captions, tags, strict=True)
        ]
        self._post(_succeed, batch, answers)

    def _one_by_one(self, batch: list[Item], error: Exception) -> list[Item]:
        """Those of a failed batch to try again, one by one: a bad picture must not fail its neighbours."""
        if len(batch) > 1:
            logger.warning("a batch of %d failed and is tried one by one: %r", len(batch), error)
            return [item for item in batch if item.wanted]
        logger.error("the engine failed on a picture", exc_info=error)
        self._post(_fail, batch[0])
        return []

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
    """Count what `batch` has waited so far; returns the time now."""
    now = time.perf_counter()
    for item in batch:
        item.waited, item.since = item.waited + now - item.since, now
    return now


def _regions(group: list[Encoded]) -> Regions:
    """The encoded pictures of `group`, in its order."""
    parts = []
    for _, together in itertools.groupby(group, lambda one: id(one.regions)):
        ones = list(together)
        regions, rows = ones[0].regions, [one.row for one in ones]
        parts.append(regions if rows == list(range(len(regions))) else regions.select(rows))
    return parts[0] if len(parts) == 1 else parts[0].join(parts)


def _check(captions: list[list[Caption]], batch: list[Item]) -> None:
    if len(captions) != len(batch) or not all(captions):
        raise RuntimeError("the engine did not answer for every picture")
