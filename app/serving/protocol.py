"""HTTP/1.1 below the application: uvicorn's, with the limits that it lacks.

uvicorn takes a protocol of one's own (`http=`), but documents none of its own to build on. What `Protocol` takes from
uvicorn's without its word for it is named by `tests/app/serving/test_protocol.py`.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import BadRequest, HeadersTooLarge, HeaderTimeout, Overloaded, ServiceError
from app.serving.middleware import LINGER_SECONDS, REFUSAL
from app.settings import Settings

MAX_HEADER_BYTES = 64 * 1024
NAMES = (b"x-request-id", b"traceparent")


class Config(uvicorn.Config):
    """uvicorn's settings, and ours."""

    settings: Settings


class Protocol(HttpToolsProtocol):
    """Limits time and bytes for headers, and open connections.

    What it refuses is answered by the application too (`app.serving.middleware`), so that it is logged and
    counted alike.
    """

    config: Config
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
