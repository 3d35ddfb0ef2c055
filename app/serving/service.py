"""From files to captions: decoding in a few processes, then the batcher, all within the deadline."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

from starlette.requests import Request

from app import tracing
from app.alt import alt_text
from app.errors import BadParameter, ClientGone, DeadlineExceeded, ServiceError, TooLarge, clear_frames
from app.metrics import Metrics
from app.pictures.guard import Decoded, Guard
from app.pictures.uploads import UploadMemory
from app.schemas import CaptionParams, CaptionResponse, ImageOut, ModelRef, captions_out, tags_out, timing
from app.serving.batching import Answer, Batcher, RequestQueue
from app.settings import Settings
from model.config import SearchConfig
from model.errors import ConfigError
from model.runtime import load_engine
from model.runtime.engine import CaptionEngine

if TYPE_CHECKING:
    from app.fetch import Fetcher

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class CaptionService:
    """Everything a running service holds."""

    def __init__(self, settings: Settings, engine: CaptionEngine, metrics: Metrics) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.ready = False
        self.tracer: tracing.Tracer | None = None
        self.batcher = Batcher(
            engine,
            metrics,
            batch_size=settings.batch_size,
            queue_size=settings.queue_size,
            batch_wait=settings.batch_wait,
        )
        self.upload_memory = UploadMemory(settings.upload_memory_bytes, metrics.upload_bytes, metrics.rejected)
        self.fetcher: Fetcher | None = None
        if settings.fetch_hosts:
            from app.fetch import Fetcher

            self.fetcher = Fetcher(settings.fetch_hosts, settings.max_upload_bytes, settings.fetch_seconds)
        config = engine.config
        max_costly = max(settings.queue_size // 2, 1)
        self.guard = Guard.of(settings, config.preprocess, metrics, settings.decode_workers, max_costly)
        # One: more would only wait for the interpreter, and the event loop with them.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self.model = ModelRef(name=config.name, version=config.version)
        metrics.model.labels(config.name, config.version, engine.name, engine.device).set(1)

    async def start(self) -> None:
        """Begin to take work; raises `DecoderFailed` if no picture could be decoded."""
        await self.guard.start()
        self.batcher.start()
        self.ready = True

    async def stop(self) -> None:
        """Let accepted work finish, then let threads and processes go."""
        self.ready = False
        await self.batcher.stop()
        await self.guard.stop()
        self._writer.shutdown()

    async def caption(
        self, files: Sequence[bytes], params: CaptionParams, request_id: str, started: float
    ) -> list[CaptionResponse | ServiceError]:
        """One answer or error for each file, in order; raises `DeadlineExceeded` for all of them, and `BadParameter`.

        started: when the request arrived, by `time.perf_counter`. The batcher must have admitted the files.
        """
        search_config = self._search_config(params)
        request_queue: RequestQueue = deque()
        work = [self._caption(data, params, search_config, request_id, started, request_queue) for data in files]
        try:
            async with asyncio.timeout(self.settings.deadline):
                if len(work) == 1:  # the usual case, without the cost of a task
                    return [await work[0]]
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(w) for w in work]
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer within {self.settings.deadline:g} seconds") from error
        return [task.result() for task in tasks]

    async def caption_as_ready(
        self, files: Sequence[bytes], params: CaptionParams, request_id: str, started: float
    ) -> AsyncGenerator[tuple[int, CaptionResponse | ServiceError]]:
        """As `caption`, but each file's number and answer as soon as it is there; late ones get `DeadlineExceeded`."""
        request_queue: RequestQueue = deque()
        search_config = self._search_config(params)
        work = [self._caption(data, params, search_config, request_id, started, request_queue) for data in files]
        numbers = {asyncio.ensure_future(one): n for n, one in enumerate(work)}
        end = time.perf_counter() + self.settings.deadline
        pending = set(numbers)
        try:
            while pending:
                wait = max(end - time.perf_counter(), 0)
                done, pending = await asyncio.wait(pending, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=numbers.__getitem__):
                    yield numbers[task], task.result()
                if not done:
                    break
            for task in sorted(pending, key=numbers.__getitem__):
                yield numbers[task], DeadlineExceeded(f"no answer within {self.settings.deadline:g} seconds")
        finally:
            for task in numbers:
                task.cancel()
            await asyncio.gather(*numbers, return_exceptions=True)

    async def _caption(
        self,
        data: bytes,
        params: CaptionParams,
        search_config: SearchConfig,
        request_id: str,
        started: float,
        request_queue: RequestQueue,
    ) -> CaptionResponse | ServiceError:
        try:
            decoded, waited = await self._decode(data)
            answer = await self.batcher.submit(decoded.pixels, search_config, params.explain, request_queue)
        except ServiceError as error:
            return error
        self.metrics.pictures.labels(decoded.format).inc()
        if self.tracer and (span := tracing.current.get()):
            queue = waited + answer.queue
            stages = {"decode": decoded.seconds, "queue": queue, "encode": answer.encode, "generate": answer.generate}
            self.tracer.stages(span, stages, {"image.format": decoded.format})
        return await self.offload(
            self._response, decoded, waited, answer, params, request_id, started, large=params.explain
        )

    def _search_config(self, params: CaptionParams) -> SearchConfig:
        """How to search; raises `BadParameter` for parameters that no caption of this model can keep to."""
        try:
            search_config = params.search_config(self.engine.config.search)
            self.engine.constraints(search_config)
        except ConfigError as error:
            raise BadParameter(str(error)) from error
        return search_config

    async def offload(self, make: Callable[[Unpack[Ts]], T], *arguments: *Ts, large: bool) -> T:
        """What `make` returns; if it is large it is made in a thread, where it holds up nobody."""
        if not large:
            return make(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._writer, make, *arguments)

    async def _decode(self, data: bytes) -> tuple[Decoded, float]:
        """The picture, and the seconds that it waited for its turn."""
        limit = self.settings.max_upload_bytes
        if len(data) > limit:
            raise TooLarge(f"the file is larger than {limit} bytes")
        start = time.perf_counter()
        decoded = await self.guard.read(data)
        self.metrics.stage("decode", decoded.seconds)
        return decoded, max(time.perf_counter() - start - decoded.seconds, 0.0)

    def _response(
        self,
        decoded: Decoded,
        waited: float,
        answer: Answer,
        params: CaptionParams,
        request_id: str,
        started: float,
    ) -> CaptionResponse:
        config = self.engine.config
        captions = captions_out(answer.captions, params.wording)
        queue = waited + answer.queue
        self.metrics.stage("queue", queue)
        total = time.perf_counter() - started
        return CaptionResponse(
            caption=captions[0].text,
            confidence=captions[0].confidence,
            captions=captions,
            model=self.model,
            image=ImageOut(width=decoded.width, height=decoded.height, format=decoded.format),
            timing_ms=timing(queue, decoded.seconds, answer.encode, answer.generate, total),
            request_id=request_id,
            alt="" if decoded.decorative else alt_text(captions[0].text),
            review=decoded.decorative or self.engine.wants_review(answer.captions[0]),
            decorative=decoded.decorative,
            tags=tags_out(config.tags, answer.tags, params.num_tags, params.wording),
        )


def open_engine(settings: Settings) -> CaptionEngine:
    """The engine that `settings` describe; raises `CaptionModelError` with what to do about it."""
    return load_engine(settings.model, settings.device, settings.engine, settings.threads)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
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
        await asyncio.wait((task, gone))
        for ended in (task, gone):
            try:
                clear_frames(ended.exception())
            except asyncio.CancelledError as cancelled:
                clear_frames(cancelled)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
