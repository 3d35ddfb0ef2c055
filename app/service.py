"""From files to captions: decoding in a few threads, then the batcher, all within the deadline."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple, Unpack

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from app import images
from app.batching import Answer, Batcher, Line
from app.errors import ClientGone, DeadlineExceeded, ServiceError, TooLarge
from app.guard import Guard
from app.metrics import Metrics
from app.schemas import CaptionParams, CaptionResponse, ImageOut, ModelRef, caption_out, timing
from app.settings import Settings
from app.uploads import UploadMemory
from model.runtime.engine import CaptionEngine

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A file made ready for the engine, and the seconds that took."""

    pixels: NDArray[np.uint8]
    image: ImageOut
    waited: float
    seconds: float


class CaptionService:
    """Everything a running service holds."""

    def __init__(self, settings: Settings, engine: CaptionEngine, metrics: Metrics) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.ready = False
        self.batcher = Batcher(
            engine,
            metrics,
            batch_size=settings.batch_size,
            queue_size=settings.queue_size,
            batch_wait=settings.batch_wait,
        )
        self.upload_memory = UploadMemory(int(settings.upload_memory_mb * 1e6), metrics.upload_bytes, metrics.rejected)
        config = engine.config
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        # Its own thread: a picture that takes long there must not hold up the others.
        self._guarded = ThreadPoolExecutor(1, thread_name_prefix="guarded")
        self._guard = Guard(config.preprocess, settings.max_pixels, settings.decode_seconds, settings.decode_memory_mb)
        # One: more would only wait for the interpreter, and the event loop with them.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self.model = ModelRef(name=config.name, version=config.version)
        metrics.model.labels(config.name, config.version, engine.name, engine.device).set(1)

    def start(self) -> None:
        """Begin to take work; to be called in the event loop."""
        self.batcher.start()
        self.ready = True

    async def stop(self) -> None:
        """Let accepted work finish, then let the threads go."""
        self.ready = False
        await self.batcher.stop()
        for pool in (self._decoders, self._guarded, self._writer):
            pool.shutdown()
        self._guard.close()

    async def caption(
        self, files: Sequence[bytes], params: CaptionParams, request_id: str, started: float
    ) -> list[CaptionResponse | ServiceError]:
        """One answer or error for each file, in order; raises `DeadlineExceeded` for all of them.

        started: when the request arrived, by `time.perf_counter`. The batcher must have admitted the files.
        """
        line: Line = deque()
        work = [self._caption(data, params, request_id, started, line) for data in files]
        try:
            async with asyncio.timeout(self.settings.deadline):
                if len(work) == 1:  # the usual case, without the cost of a task
                    return [await work[0]]
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(w) for w in work]
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer within {self.settings.deadline:g} seconds") from error
        return [task.result() for task in tasks]

    async def _caption(
        self, data: bytes, params: CaptionParams, request_id: str, started: float, line: Line
    ) -> CaptionResponse | ServiceError:
        search = params.search(self.engine.config.search)
        try:
            decoded = await self._decode(data)
            answer = await self.batcher.submit(decoded.pixels, search, params.explain, line)
        except ServiceError as error:
            return error
        self.metrics.pictures.labels(decoded.image.format).inc()
        return await self.aside(self._response, decoded, answer, request_id, started, large=params.explain)

    async def aside(self, make: Callable[[Unpack[Ts]], T], *arguments: *Ts, large: bool) -> T:
        """What `make` returns; if it is large it is made in a thread, where it holds up nobody."""
        if not large:
            return make(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._writer, make, *arguments)

    async def _decode(self, data: bytes) -> Decoded:
        limit = self.settings.max_upload_bytes
        if len(data) > limit:
            raise TooLarge(f"the file is larger than {limit} bytes")
        loop, queued_at = asyncio.get_running_loop(), time.perf_counter()
        try:
            return await loop.run_in_executor(self._decoders, self._ready, self._read, data, queued_at)
        except images.NeedsGuard:
            return await loop.run_in_executor(self._guarded, self._ready, self._guard.read, data, queued_at)

    def _read(self, data: bytes) -> images.Picture:
        return images.read(data, self.settings.max_pixels, self.engine.config.preprocess.size)

    def _ready(self, read: Callable[[bytes], images.Picture], data: bytes, queued_at: float) -> Decoded:
        """Runs in a decoding thread."""
        start = time.perf_counter()
        picture = read(data)
        pixels = self.engine.preprocess(picture.image)
        seconds = time.perf_counter() - start
        self.metrics.stage("decode", seconds)
        image = ImageOut(width=picture.width, height=picture.height, format=picture.format)
        return Decoded(pixels, image, start - queued_at, seconds)

    def _response(self, decoded: Decoded, answer: Answer, request_id: str, started: float) -> CaptionResponse:
        captions = [caption_out(caption) for caption in answer.captions]
        queue = decoded.waited + answer.queue
        self.metrics.stage("queue", queue)
        total = time.perf_counter() - started
        return CaptionResponse(
            caption=captions[0].text,
            confidence=captions[0].confidence,
            captions=captions,
            model=self.model,
            image=decoded.image,
            timing_ms=timing(queue, decoded.seconds, answer.encode, answer.generate, total),
            request_id=request_id,
        )


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, cancelled with `ClientGone` when the client hangs up; its body must have been read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone("the client hung up before its answer")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
