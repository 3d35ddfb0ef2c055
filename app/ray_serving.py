"""The service on Ray Serve: each replica is the whole application, with its own engine, batcher and decoders.

`serve run deploy/ray/serve.yaml` starts it. On GPUs (`split`) replicas of the application decode pictures on CPUs, and
hand their pixels to replicas of the engine, which batch what comes from all of them.

Batches are made by `app.serving.batching`, not by `@serve.batch`: that would let a lone picture wait for others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Gauge
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PROBLEM_TYPE, EngineHangs, problem
from app.main import create_app
from app.metrics import Metrics
from app.routes import health
from app.serving.batching import Batcher
from app.serving.service import open_engine
from app.settings import Settings, from_environment
from model.caption import Caption
from model.config import SearchConfig
from model.runtime.engine import CaptionEngine, Lane, Regions

EXPORT_SECONDS = 5.0  # between copies of our metrics to Ray's exporter
LANES = 8  # batches that a replica of the application may have at replicas of the engine at once
SHUTDOWN_SECONDS = 60.0  # for accepted requests, more than the deadline
CODES = {408: (504, "deadline_exceeded"), 500: (500, "internal_error"), 503: (503, "overloaded")}


class Arguments(BaseModel):
    """What `args` of serve.yaml may say."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] = Field({}, description="Settings that differ from the environment of the replica's node.")
    cpus: int = Field(1, ge=1, description="CPUs of a replica, and threads of its engine.")
    split: bool = Field(False, description="Whether engines are replicas of their own, which batch for all others.")
    engine_gpus: float = Field(0, ge=0, description="GPUs of a replica of the engine, where they are split.")


def build(arguments: Arguments) -> serve.Application:
    """The application of serve.yaml; raises `SettingsError` before anything is deployed."""
    settings = from_environment(**arguments.settings)
    options = {"ray_actor_options": {"num_cpus": arguments.cpus}}
    if not arguments.split:
        ongoing = max(settings.queue_size // 2, 1)
        bound: serve.Application = Captions.options(  # type: ignore[attr-defined]
            max_ongoing_requests=ongoing, **options
        ).bind(arguments)
        return bound
    engine = Engine.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.engine_gpus},
        max_ongoing_requests=4 * settings.batch_size,
    ).bind(arguments)
    split: serve.Application = Captions.options(**options).bind(arguments, engine)  # type: ignore[attr-defined]
    return split


def _settings(arguments: Arguments) -> Settings:
    """Those of a replica: its node's environment, then `args`; as many threads as it has CPUs."""
    return from_environment(**{"threads": arguments.cpus, **arguments.settings})


@serve.deployment(
    name="captions",
    # Half of the queue: pictures that Ray sends are rarely refused, and Ray gives the others to whoever has room.
    max_ongoing_requests=32,
    max_queued_requests=256,
    backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
    autoscaling_config=AutoscalingConfig(
        min_replicas=1, max_replicas=8, target_ongoing_requests=8, upscale_delay_s=5, downscale_delay_s=120
    ),
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
    # With a replica's CPUs to spare, an upgrade starts the new one first. Without, the old ones would be waited for.
    max_surge_percent=100,
)
@serve.ingress()
class Captions:
    """The application: decodes pictures, and captions them itself or asks replicas of the engine."""

    def __init__(self, arguments: Arguments, engine: DeploymentHandle[Any] | None = None) -> None:
        self.settings = _settings(arguments)
        self.engine = engine
        self._export: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """The application of this replica, whose start-up Ray waits for."""
        if self.engine is None:
            loaded: CaptionEngine = open_engine(self.settings)
        else:
            loaded = RemoteEngine(self.engine, await self.engine.facts.remote())
        self.application = create_app(self.settings, loaded)
        self._export = asyncio.create_task(_export(self.application))
        return self.application

    async def check_health(self) -> None:
        """What /health/live and /health/ready look at; after three failures Ray replaces the replica."""
        if not hasattr(self.application.state, "service"):
            return  # starting
        request = Request({"type": "http", "app": self.application})
        await health.live(request)
        await health.ready(request)


@serve.deployment(
    name="engine",
    max_ongoing_requests=64,
    autoscaling_config=AutoscalingConfig(min_replicas=1, max_replicas=8, target_ongoing_requests=16),
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
    max_surge_percent=100,
)
class Engine:
    """The model alone. What replicas of the application send at about the same time becomes one batch."""

    def __init__(self, arguments: Arguments) -> None:
        self.settings = settings = _settings(arguments)
        self.engine = open_engine(settings)
        self.engine.warm_up()
        self.batcher = Batcher(
            self.engine,
            Metrics(),
            batch_size=settings.batch_size,
            queue_size=LANES * settings.queue_size,
            batch_wait=settings.batch_wait,
        )
        self._started = False

    def facts(self) -> Facts:
        """What the application says of the engine."""
        engine = self.engine
        return Facts(engine.name, engine.device, engine.precision, engine.config, dict(engine.card))

    async def caption(
        self, pixels: NDArray[np.uint8], search_config: SearchConfig | None, explain: bool
    ) -> tuple[list[list[Caption]], NDArray[np.float32]]:
        """Captions of B pictures, (B, size, size, 3), and the probabilities of their tags, (B, G)."""
        if not self._started:
            self.batcher.start()  # in the event loop that serves
            self._started = True
        with self.batcher.admit(len(pixels)):
            search_config = search_config or self.engine.config.search
            answers = await asyncio.gather(*(self.batcher.submit(one, search_config, explain) for one in pixels))
        return [answer.captions for answer in answers], np.stack([answer.tags for answer in answers])

    def check_health(self) -> None:
        seconds = self.batcher.engine_seconds
        if seconds > self.settings.hang:
            raise EngineHangs(f"the engine has not answered for {seconds:.0f} seconds")


@dataclass(frozen=True)
class Facts:
    """An engine, as others see it."""

    name: str
    device: str
    precision: str
    config: Any
    card: Mapping[str, Any]


@dataclass
class Pixels(Regions):
    """Pictures as they are: another process encodes them, (B, size, size, 3). tags: known once they have captions."""

    pixels: NDArray[np.uint8]
    tags: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, rows: Sequence[int]) -> Pixels:
        return Pixels(self.pixels[list(rows)])

    @classmethod
    def join(cls, parts: Sequence[Pixels]) -> Pixels:
        return cls(np.concatenate([part.pixels for part in parts]))


class RemoteLane(Lane):
    """A batch on its way to a replica of the engine and back."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self.handle = handle

    def encode(self, pixels: NDArray[np.uint8]) -> Pixels:
        return Pixels(pixels)

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, Pixels)
        captions: list[list[Caption]]
        captions, regions.tags = self.handle.caption.remote(regions.pixels, search_config, explain).result()
        return captions


class RemoteEngine(RemoteLane, CaptionEngine):
    """The replicas of `Engine`, as the application's engine."""

    gains_from_batches = False  # they make the batches; here nothing waits

    def __init__(self, handle: DeploymentHandle[Any], facts: Facts) -> None:
        super().__init__(handle)
        self.name, self.device, self.precision = facts.name, facts.device, facts.precision
        self.config, self.card = facts.config, facts.card
        self._lanes = [RemoteLane(handle) for _ in range(LANES)]

    @property
    def lanes(self) -> Sequence[Lane]:
        return self._lanes

    def tags(self, regions: Regions) -> NDArray[np.float32]:
        assert isinstance(regions, Pixels)
        assert regions.tags is not None, "they come with the captions"
        return regions.tags

    def warm_up(self, batch_sizes: Sequence[int] | None = None) -> None:
        """Nothing: replicas of the engine have done it, and nobody may wait for them in this event loop."""


async def _export(application: FastAPI) -> None:
    """Copy our metrics into Ray's, sample by sample: there they have the same names after `ray_`.

    As gauges, whatever they are: `rate` and `histogram_quantile` take them alike.
    """
    gauges: dict[str, Gauge] = {}
    while True:
        await asyncio.sleep(EXPORT_SECONDS)
        if not hasattr(application.state, "service"):
            continue
        for family in application.state.service.metrics.registry.collect():
            for sample in family.samples:
                if not sample.name.startswith("caption_") or sample.name.endswith("_created"):
                    continue
                if sample.name not in gauges:
                    gauges[sample.name] = Gauge(sample.name, family.documentation, tuple(sample.labels))
                gauges[sample.name].set(sample.value, dict(sample.labels))


class Problems:
    """In Ray's proxy: answers of the proxy itself become problems like ours, and each has one X-Request-ID.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=app.ray_serving:problems puts it there.
    """

    DETAILS: ClassVar[Mapping[int, str]] = {
        408: "no answer within the proxy's time",
        500: "the replica that had this request has ended",
        503: "too many requests wait, or no replica is there yet",
    }

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything through but what is no answer of the application."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self.app(scope, receive, send)
            return
        replaced = started = False

        async def sending(message: Message) -> None:
            nonlocal replaced, started
            if message["type"] == "http.response.start" and not started:
                started = True
                headers = MutableHeaders(raw=message["headers"])
                name = headers.get("x-request-id", "")
                if name:
                    headers["x-request-id"] = name  # once: Ray adds it to what our own application has set
                ours = "json" in headers.get("content-type", "")
                if message["status"] in CODES and not ours:
                    replaced = True
                    status, code = CODES[message["status"]]
                    body = json.dumps(problem(status, code, self.DETAILS[message["status"]], name)).encode()
                    headers["content-type"], headers["content-length"] = PROBLEM_TYPE, str(len(body))
                    if status == 503:
                        headers.setdefault("retry-after", "1")
                    await send({"type": "http.response.start", "status": status, "headers": headers.raw})
                    await send({"type": "http.response.body", "body": body, "more_body": False})
                    return
                message = {**message, "headers": headers.raw}
            if not replaced:
                await send(message)

        await self.app(scope, receive, sending)


def problems() -> list[Middleware]:
    """What Ray's proxy puts before itself."""
    return [Middleware(Problems)]


def __getattr__(name: str) -> Any:
    """`application`: what `serve build app.ray_serving:application` looks at, made when it is asked for."""
    if name == "application":
        return build(Arguments())
    raise AttributeError(name)
