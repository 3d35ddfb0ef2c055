"""Runs the application under uvicorn: time-outs for slow clients, one or several workers, a clean end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httptools
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from app.errors import BadRequest, HeadersTooLarge, HeaderTimeout, Overloaded, ServiceError
from app.metrics import MULTIPROCESS
from app.serving.logs import log_config
from app.serving.middleware import LINGER_SECONDS, REFUSAL
from app.settings import Settings, to_environment
from model.errors import CaptionModelError

MAX_HEADER_BYTES = 64 * 1024
WORKER_SECONDS = 30  # a worker that is silent for longer is replaced; one that imports on a busy machine takes some
NAMES = (b"x-request-id", b"traceparent")
FACTORY = "app.main:create_loaded_app"  # each worker imports and calls it; the settings are in the environment


class _Config(uvicorn.Config):
    """uvicorn's settings, and ours for `Protocol`."""

    settings: Settings

    def load(self) -> None:
        """Make the application, in the process that serves; a bad checkpoint is one line and not a traceback."""
        if self.workers == 1:
            super().load()  # whoever called `serve` hears of it
            return
        _end_with_supervisor()
        try:
            super().load()
        except CaptionModelError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(STARTUP_FAILURE)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with the limits it lacks: time and bytes for headers, and open connections.

    What it refuses is answered by the application too (`app.serving.middleware`), so that it is logged and
    counted alike.
    """

    config: _Config
    _timer: asyncio.TimerHandle | None = None
    _unused = 0  # bytes received since the headers were complete or the body grew: headers, trailers, or nothing
    _in_head = False
    _in_body = False
    _refusal: ServiceError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for a connection too many or refuse it; drop peers that stop taking what is sent to them."""
        super().connection_made(transport)
        if len(self.connections) > self.config.settings.max_connections and not self._close_an_idle_one():
            self._refuse(Overloaded("too many open connections"))
            return
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family != socket.AF_UNIX:
            peer.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * self.config.settings.header_timeout)
            )
        self._start_timer()

    def _close_an_idle_one(self) -> bool:
        """Close the connection that has waited longest for another request; False if none waits."""
        waiting = {}
        for connection in self.connections:
            assert isinstance(connection, Protocol)
            if connection.timeout_keep_alive_task and not connection.transport.is_closing():
                waiting[connection.timeout_keep_alive_task.when()] = connection.transport
        if waiting:
            waiting[min(waiting)].close()
        return bool(waiting)

    def data_received(self, data: bytes) -> None:
        """Count header bytes, and time them from their first one (uvicorn times only idle connections).

        The same clock runs for the rest of a body that was answered before it was read.
        """
        if self._refusal is not None:
            return  # dropped until the client has read why
        self._stop_keep_alive()
        self._unused += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            reason = error.__context__  # what a callback raised
            self._refuse(reason if isinstance(reason, ServiceError) else BadRequest("not an HTTP request"))
            return
        if self._unused > MAX_HEADER_BYTES:
            self._refuse(HeadersTooLarge(f"the headers are larger than {MAX_HEADER_BYTES} bytes"))
        elif self._answered() and not self.transport.is_closing():
            if self._in_head or self._in_body:
                self._start_timer()
            elif self._timer is None and self.timeout_keep_alive_task is None:  # line breaks, or a body's end
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def _parse(self, data: bytes) -> None:
        """Feed the parser; a request to upgrade is ignored, as HTTP lets a server do (RFC 9110, 7.8).

        httptools ends a message that has one after its headers, whatever body follows. So such headers are
        parsed again without it, and the body as what it is.
        """
        left = memoryview(data)
        while left:
            try:
                self.parser.feed_data(left)
                return
            except httptools.HttpParserUpgrade as upgrade:
                left = left[upgrade.args[0] :]
                first = b"%b %b HTTP/%b\r\n" % (
                    self.parser.get_method(), self.url, self.parser.get_http_version().encode()
                )  # fmt: skip
                fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
                self.parser.feed_data(first + b"".join(fields) + b"\r\n")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are dropped: they must not change a request that runs already."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are in: stop their clock; raises what is wrong with them."""
        self._stop_timer()
        self._unused = 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"the headers are larger than {MAX_HEADER_BYTES} bytes")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise BadRequest("this is no proxy")
            return  # parsed again
        self._in_head, self._in_body = False, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is in, be it read or dropped."""
        if self.parser.should_upgrade():
            return
        self._in_body = False
        self._unused = 0
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer was sent; a refusal that waited for it is next."""
        super().on_response_complete()
        if self.transport.is_closing() or not self._answered():
            return
        if self._refusal is not None:
            self._answer(self._refusal)
        elif self._in_head or self._in_body:  # of the next request, or the rest of this one: not idle
            self._stop_keep_alive()
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        self._stop_timer()
        super().connection_lost(exc)

    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop_keep_alive(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _start_timer(self) -> None:
        if self._timer is None:
            seconds = self.config.settings.header_timeout
            error = HeaderTimeout(f"the headers did not arrive within {seconds:g} seconds")
            self._timer = self.loop.call_later(seconds, self._refuse, error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: ServiceError) -> None:
        """Answer below the application, after what is being answered, and close."""
        if self._refusal is not None or self.transport.is_closing():
            return
        self._refusal = error
        self._stop_timer()
        if self._in_body:
            if self._answered() or self.cycle.response_started or self.pipeline:
                self.transport.close()  # an answer now would be taken for another's
                return
            self.cycle.disconnected = True  # the body will not come
            self.cycle.message_event.set()
            self._answer(error)
        elif self._answered():
            self._answer(error)

    def _answer(self, error: ServiceError) -> None:
        # As far as they came: what the request is called may be there.
        headers = [field for field in self.headers if field[0] in NAMES] if self._in_head else []
        scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "",
            "scheme": self.scheme,
            "path": "",
            "raw_path": b"",
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": self.client,
            "server": self.server,
            "state": self.app_state.copy(),
            "extensions": {REFUSAL: error},
        }
        # As uvicorn keeps the tasks that it waits for before it ends.
        task = self.loop.create_task(self._run(scope))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _run(self, scope: dict[str, Any]) -> None:
        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if self.transport.is_closing():
                return
            if message["type"] == "http.response.start":
                status = HTTPStatus(message["status"])
                headers = [*self.server_state.default_headers, *message["headers"]]
                lines = [b"%b: %b" % (name, value) for name, value in headers]
                first = f"HTTP/1.1 {status} {status.phrase}".encode()
                self.transport.write(b"\r\n".join([first, *lines, b"connection: close", b"", b""]))
            else:
                self.transport.write(message["body"])

        await self.app(scope, receive, send)
        if self.transport.is_closing():
            return
        if isinstance(self._refusal, Overloaded) or not self.transport.can_write_eof():
            self.transport.close()
        else:  # closed with bytes unread, the connection would be reset, and the answer with it
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)


class _Server(uvicorn.Server):
    """Says where it is once it can be reached."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets:
            announce(sockets[0])


class _Supervisor(Multiprocess):
    """Restarts workers that die, and gives its own copy of the listening socket up on SIGTERM.

    The first worker starts alone, so that what is wrong with the checkpoint is said once; the address is told when
    all of them serve.
    """

    def init_processes(self) -> None:
        self._wanted, self.processes_num = self.processes_num, 1
        super().init_processes()
        self._announced = False

    def keep_subprocess_alive(self) -> None:
        ended = {process.exitcode for process in self.processes} - {None}
        if self._announced or (ended and STARTUP_FAILURE not in ended):
            super().keep_subprocess_alive()
            return
        if ended:
            self.should_exit.set()  # the worker has said why; another would fail the same way
            return
        if not all(process.is_ready(timeout=0.2) for process in self.processes):
            return
        if self._wanted > self.processes_num:
            for _ in range(self._wanted - self.processes_num):
                self.handle_ttin()
            return
        self._announced = True
        announce(self.sockets[0])

    def handle_term(self) -> None:
        for sock in self.sockets:
            sock.close()
        super().handle_term()


def _end_with_supervisor() -> None:
    """Stop this worker as SIGTERM does when its supervisor is gone, however that ended."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return

    def watch() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


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
        timeout_worker_healthcheck=WORKER_SECONDS,
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
    """A listening socket; `::` is every interface, of IPv4 too.

    Raises `OSError` if the address is taken or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)


def _sample() -> Path:
    sample = Path(__file__).parents[1] / "static" / "sample.jpg"
    return Path(os.path.relpath(sample)) if sample.is_file() else Path("picture.jpg")


def announce(listener: socket.socket) -> None:
    """Print where the service is, and a command to try it."""
    host, port = listener.getsockname()[:2]
    if host == "::" and listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        host = "::1"
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"Page      {url}/")
    print(f"API docs  {url}/docs")
    print(f"Try it    curl -F image=@{_sample()} {url}/caption", flush=True)
