"""CPU of the serving process by stage: `python -m benchmarks.stages --port N` serves as `python -m app` does, watched.

What a stage calls of another is the other's, and what it waits for is nobody's. On SIGUSR1 it prints as a line of JSON
the seconds of CPU so far: of each stage in the event loop's thread, of that thread, of the lanes', and of the process.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any

from app.__main__ import main as serve

# What runs in the event loop, by the functions that a request goes through.
STAGES: Mapping[str, tuple[str, ...]] = {
    "HTTP: bytes to a request": (
        "app.serving.protocol:Protocol.connection_made",
        "app.serving.protocol:Protocol.data_received",
        "app.serving.protocol:Protocol.connection_lost",
        "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.receive",
    ),
    "HTTP: answer to bytes, sent": ("uvicorn.protocols.http.httptools_impl:RequestResponseCycle.send",),
    "request's context: id, clock, trace, host": (
        "app.serving.middleware:RequestContext.__call__",
        "app.serving.middleware:AllowedHosts.__call__",
    ),
    "headers of the answer": ("starlette.responses:Response.__call__",),
    "log line and metrics": ("app.serving.middleware:RequestContext._note", "app.metrics:Metrics.stage"),
    "middleware of Starlette": (
        "fastapi.applications:FastAPI.__call__",
        "starlette.middleware.exceptions:ExceptionMiddleware.__call__",
    ),
    "route found and set up": ("starlette.routing:Router.__call__",),
    "parameters of the query, dependencies": ("fastapi.routing:solve_dependencies",),
    "route, admission, deadline, its tasks": (
        "fastapi.routing:run_endpoint_function",
        "app.incoming:Incoming.caption_one",
        "app.serving.service:CaptionService.caption",
        "app.serving.service:_gone",
    ),
    "body read, form parsed": ("app.pictures.uploads:read_image",),
    "picture to a decoder and pixels back": (
        "app.pictures.guard:Guard.read",
        "app.pictures.guard:Guard._on_reply",
        "app.pictures.guard:Guard._check_progress",
    ),
    "pixels to a lane and captions back": (
        "app.serving.batching:Batcher.submit",
        "app.serving.batching:_succeed",
    ),
    "answer built": ("app.serving.service:CaptionService._response",),
    "answer checked, JSON": ("fastapi.routing:serialize_response",),
}  # fmt: skip


class Watch:
    """CPU of the thread that made it, by stage."""

    def __init__(self, now: Callable[[], float] = time.thread_time) -> None:
        self.now = now
        self.seconds: dict[str, float] = {}
        self._thread = threading.get_ident()
        self._within: list[str] = []  # stages, each called by the one before
        self._since = 0.0

    def enter(self, stage: str) -> None:
        """From now on it is this stage's."""
        self._count()
        self._within.append(stage)

    def leave(self) -> None:
        """From now on it is the caller's again."""
        self._count()
        self._within.pop()

    def _count(self) -> None:
        now = self.now()
        if self._within:
            stage = self._within[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now

    def watched(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """`function`, counted as `stage` where this thread calls it; of a coroutine each turn."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def turns(*arguments: Any, **named: Any) -> Any:
                return await _Turns(function(*arguments, **named), stage, self)

            return turns

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != self._thread:
                return function(*arguments, **named)
            self.enter(stage)
            try:
                return function(*arguments, **named)
            finally:
                self.leave()

        return call

    def install(self, stages: Mapping[str, tuple[str, ...]] = STAGES) -> None:
        """Put all of `stages` under watch."""
        for stage, places in stages.items():
            for place in places:
                owner, name, function = find(place)
                setattr(owner, name, self.watched(function, stage))


class _Turns(Generator[Any, Any, Any]):
    """A coroutine whose turns are counted."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], stage: str, watch: Watch) -> None:
        self.coroutine, self.stage, self.watch = coroutine, stage, watch

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def send(self, value: Any) -> Any:
        self.watch.enter(self.stage)
        try:
            return self.coroutine.send(value)
        finally:
            self.watch.leave()

    def throw(self, *error: Any) -> Any:
        self.watch.enter(self.stage)
        try:
            return self.coroutine.throw(*error)
        finally:
            self.watch.leave()

    def close(self) -> None:
        self.coroutine.close()


def find(place: str) -> tuple[Any, str, Callable[..., Any]]:
    """`module:function` or `module:Class.function` -> what holds it, its name, and itself."""
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    owner = functools.reduce(getattr, outer, importlib.import_module(module))
    return owner, name, getattr(owner, name)


def so_far(watch: Watch) -> dict[str, Any]:
    """Seconds of CPU, as they are printed."""
    lanes = [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in lanes if thread.ident]
    return {
        "stages": watch.seconds,
        "loop": time.thread_time(),
        "lanes": sum(map(time.clock_gettime, clocks)),
        "process": time.process_time(),
    }


def main() -> int:
    """Serve, watched."""
    watch = Watch()
    watch.install()
    signal.signal(signal.SIGUSR1, lambda *_: print(json.dumps(so_far(watch)), flush=True))
    return serve()


if __name__ == "__main__":
    sys.exit(main())
