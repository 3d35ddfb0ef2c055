"""The application: `create_app` puts the parts together."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from ipaddress import ip_address
from types import FrameType
from typing import Any

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app import compat, tracing
from app.metrics import Metrics
from app.routes import caption, health, model, page, problems
from app.schemas import Problem
from app.serving.middleware import AllowedHosts, ForwardedPrefix, RequestContext
from app.serving.security import require_key
from app.serving.service import CaptionService, open_engine
from app.settings import Settings, from_environment
from model.runtime.engine import CaptionEngine

TURN = 0.0005  # seconds


def create_app(
    settings: Settings | None = None, engine: CaptionEngine | None = None, tracer: tracing.Tracer | None = None
) -> FastAPI:
    """The service as an ASGI application; `engine` defaults to the one `settings` describe, loaded at start-up.

    tracer: sends spans; by default what the environment asks for (`app.tracing`).
    """
    settings = settings or from_environment()
    metrics = Metrics()
    tracer = tracer or tracing.from_environment()

    app = FastAPI(
        title="Image captioning",
        summary="A picture in, its captions out.",
        version="1",
        docs_url=None,  # ours need no internet, see app.routes.page
        redoc_url=None,
        lifespan=partial(_lifespan, settings=settings, engine=engine, metrics=metrics, tracer=tracer),
        redirect_slashes=False,  # a redirect would have to know the scheme, the name and the prefix that clients see
    )
    problems.install(app)
    guard = [Depends(require_key(settings.keys))] if settings.keys else []
    app.include_router(caption.router, dependencies=guard)
    app.include_router(model.router, dependencies=guard)
    app.include_router(health.router)
    page.install(app)
    compat.install(app, settings.protocols, guard)
    _add_middleware(app, settings, metrics, tracer)
    app.openapi = _with_problem_schema(app.openapi)  # type: ignore[method-assign]
    return app


def create_loaded_app() -> FastAPI:
    """The application of a worker; raises `CaptionModelError` before there is anything to shut down."""
    settings = from_environment()
    return create_app(settings, open_engine(settings))


@asynccontextmanager
async def _lifespan(
    app: FastAPI, settings: Settings, engine: CaptionEngine | None, metrics: Metrics, tracer: tracing.Tracer | None
) -> AsyncIterator[None]:
    loaded = engine or open_engine(settings)
    service = CaptionService(settings, loaded, metrics)
    service.tracer = tracer
    app.state.service = service
    # For a lone picture: what several at once need is made when they come, which may never be.
    warm_up = asyncio.create_task(asyncio.to_thread(loaded.warm_up, (1,)))
    await service.start()  # the processes that decode load while the engine compiles
    try:
        await warm_up
    except BaseException:
        await service.stop()
        raise
    with _unready_first(service, settings.drain_delay), _start_up_frozen(), _short_turns():
        yield
    await service.stop()
    if tracer:
        await asyncio.to_thread(tracer.stop)


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, tracer: tracing.Tracer | None) -> None:
    """What stands before the routes; each before those above it."""
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "traceparent"],
            expose_headers=["X-Request-ID", "Retry-After", "traceparent"],
        )
    local = not settings.allowed_hosts and not settings.keys and _is_loopback(settings.host)
    if local or (settings.allowed_hosts and "*" not in settings.allowed_hosts):
        app.add_middleware(AllowedHosts, names=settings.allowed_hosts, local=local)
    app.add_middleware(RequestContext, metrics=metrics, log_health=settings.log_health, tracer=tracer)
    trusted = list(settings.trusted_proxies)
    if trusted:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=trusted)
    if trusted or settings.root_path:
        app.add_middleware(ForwardedPrefix, trusted=trusted, root_path=settings.root_path)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _unready_first(service: CaptionService, delay: float) -> Iterator[None]:
    """On SIGTERM turn unready at once, and only `delay` seconds later let the server stop accepting.

    So a load balancer sees it coming. The server's own handler, installed before, does the rest.
    """
    stop = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(stop):
        yield
        return
    loop = asyncio.get_running_loop()

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        service.ready = False
        loop.call_soon_threadsafe(loop.call_later, delay, stop, number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, stop)


@contextmanager
def _short_turns() -> Iterator[None]:
    """Let the event loop wait for the interpreter no longer than `TURN` seconds a thread.

    It asks for it after each read and write, and the lanes' threads would keep it for Python's 5 ms each time.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _start_up_frozen() -> Iterator[None]:
    """Spare the garbage collector what start-up made: a hundred thousand objects that stay, seen again and again.

    Of several applications in a process the first that stops ends it for all, which costs time and no more.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _with_problem_schema(openapi: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """`openapi` with the schema that every problem response refers to."""

    def document() -> dict[str, Any]:
        made = openapi()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        made["components"].setdefault("schemas", {}).setdefault("Problem", schema)
        return made

    return document
