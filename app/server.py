"""Runs the application under uvicorn: time-outs for slow clients, one or several workers, a clean end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from app.errors import (
    PROBLEM_TYPE,
    BadRequest,
    HeadersTooLarge,
    HeaderTimeout,
    Overloaded,
    ServiceError,
    problem,
)
from app.logs import log_config
from app.metrics import MULTIPROCESS
from app.settings import Settings, to_environment

MAX_HEADER_BYTES = 64 * 1024
FACTORY = "app.main:create_app"  # each worker imports and calls it; the settings are in the environment


class _Config(uvicorn.Config):
    """uvicorn's settings, and ours for `Protocol`."""

    settings: Settings


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with the limits it lacks: time and bytes for headers, and open connections."""

    config: _Config
    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection too many; drop peers that stop taking what is sent to them."""
        super().connection_made(transport)
        if len(self.connections) > self.config.settings.max_connections:
            self._refuse(Overloaded("too many open connections"))
            return
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family != socket.AF_UNIX:
            peer.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * self.config.settings.header_timeout)
            )
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Count header bytes, and time them from their first one (uvicorn times only idle connections).

        The same clock runs for the rest of a body that was answered before it was read.
        """
        if self._answered() and not self._in_body:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._answered() and not self.transport.is_closing():
            self._start_timer()
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(HeadersTooLarge(f"the headers are larger than {MAX_HEADER_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        """The headers are in: stop their clock."""
        self._stop_timer()
        self._header_bytes = 0
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is in, be it read or dropped."""
        self._in_body = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        self._stop_timer()
        super().connection_lost(exc)

    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        if self._timer is None:
            seconds = self.config.settings.header_timeout
            error = HeaderTimeout(f"the headers did not arrive within {seconds:g} seconds")
            self._timer = self.loop.call_later(seconds, self._refuse, error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are not HTTP."""
        self._refuse(BadRequest("not an HTTP request"))

    def _refuse(self, error: ServiceError) -> None:
        """Answer below the application, and close."""
        if self.transport.is_closing():
            return
        body = json.dumps(problem(error.status, error.code, error.detail, uuid.uuid4().hex)).encode()
        lines = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            f"Content-Type: {PROBLEM_TYPE}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *([f"Retry-After: {error.retry_after}"] if error.retry_after else []),
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()


class _Server(uvicorn.Server):
    """Says where it is once it can be reached."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets:
            announce(sockets[0])


class _Supervisor(Multiprocess):
    """Restarts workers that die, and gives its own copy of the listening socket up on SIGTERM."""

    def init_processes(self) -> None:
        super().init_processes()
        announce(self.sockets[0])

    def handle_term(self) -> None:
        for sock in self.sockets:
            sock.close()
        super().handle_term()


def serve(settings: Settings, factory: str | Callable[[], Any] = FACTORY) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status, 0 after a clean stop.

    factory: makes the application; with several workers its import path. Raises `OSError` if the
    address cannot be listened on.
    """
    listener = listen(settings.host, settings.port)
    to_environment(settings)
    config = _Config(
        factory,
        factory=True,
        http=Protocol,
        ws="none",
        lifespan="on",
        workers=settings.workers,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=settings.grace,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=log_config(settings.log_level),
    )
    config.settings = settings
    if settings.workers == 1:
        # uvicorn raises the signal again when all is done; by then it means: everything went well.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        server = _Server(config)
        server.run([listener])
        return 0 if server.started else STARTUP_FAILURE
    with tempfile.TemporaryDirectory(prefix="caption-metrics-") as folder:
        os.environ[MULTIPROCESS] = folder  # numbers only: counters that the workers share
        supervisor = _Supervisor(config, [listener])
        supervisor.run()
    failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
    return STARTUP_FAILURE if failed else 0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises `OSError` if the address is taken or is none of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _sample() -> Path:
    sample = Path(__file__).parent / "static" / "sample.jpg"
    return Path(os.path.relpath(sample)) if sample.is_file() else Path("picture.jpg")


def announce(listener: socket.socket) -> None:
    """Print where the service is, and a command to try it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"Page      {url}/")
    print(f"API docs  {url}/docs")
    print(f"Try it    curl -F image=@{_sample()} {url}/caption", flush=True)
