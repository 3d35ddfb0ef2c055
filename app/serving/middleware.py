"""What every request gets: an id, security headers, a line in the access log, a count, and never a bare 500."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address, ip_network

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing
from app.errors import PROBLEM_TYPE, NotReady, ServiceError, UnknownHost, problem
from app.metrics import Metrics
from app.settings import ROOT_PATH

logger = logging.getLogger("app.access")

# A connection that is closed while its client still sends may cost the client its answer. So the rest of
# a refused body is received and dropped if it is this small, and else for this long, then cut off.
DROPPED_BYTES = 128_000_000
LINGER_BYTES, LINGER_SECONDS = 8_000_000, 1.0
REFUSAL = "caption.refusal"  # an ASGI extension: the `ServiceError` for which app.serving.protocol refuses a connection
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# Names that no stranger can point at an address: without a dot, or below one that public DNS does not have.
LOCAL_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
HEALTH = ("/health/", "/v2/health/")  # routes of health checks, ours and those of the Open Inference Protocol
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), clipboard-write=(self), geolocation=(), microphone=()",
}


_SECURITY_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


class ForwardedPrefix:
    """The path under which a proxy shows the service, from `X-Forwarded-Prefix` of a trusted one, else as set.

    To stand before whatever believes `X-Forwarded-For`: it asks who the peer is.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[str], root_path: str) -> None:
        self.app, self.root_path, self.any = app, root_path, "*" in trusted
        self.networks = [ip_network(network) for network in trusted if network != "*"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host, port = scope["client"] or ("", 0)
            if host.startswith("::ffff:"):  # IPv4, on a socket for both
                scope["client"] = (host := host.removeprefix("::ffff:"), port)
            prefix = self.root_path
            if self._trusts(host) and (given := Headers(scope=scope).get("x-forwarded-prefix")):
                given = "".join(part.strip().rstrip("/") for part in given.split(","))
                prefix = given if ROOT_PATH.fullmatch(given) else prefix
            if prefix:  # which the proxy has removed from the path; ASGI's path has it
                scope["root_path"] = prefix
                scope["path"] = prefix + scope["path"]
                scope["raw_path"] = prefix.encode() + scope["raw_path"]
        await self.app(scope, receive, send)

    def _trusts(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return self.any
        return self.any or any(address in network for network in self.networks)


class AllowedHosts:
    """Refuses names that are not the service's: a web page may point its own at this machine (DNS rebinding).

    An address in `Host` is safe, no name was looked up; so are `localhost`, `names` (`*.` for any below) and, if
    `local`, names that only a local network gives.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str], local: bool) -> None:
        self.app, self.names, self.local = app, [name.lower() for name in names], local
        self._knows = lru_cache(1024)(self._look_up)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == b"host" and not self._knows(value):
                    shown = value.decode("latin-1")[:100]
                    raise UnknownHost(f"{shown!r} is no name of this service; CAPTION_ALLOWED_HOSTS lists them")
        await self.app(scope, receive, send)

    def _look_up(self, header: bytes) -> bool:
        host = header.decode("latin-1").lower()
        host = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0].rstrip(".")
        with suppress(ValueError):
            return bool(ip_address(host))
        if host in ("localhost", *self.names):
            return True
        if any(name.startswith("*.") and host.endswith(name[1:]) for name in self.names):
            return True
        return self.local and ("." not in host or host.endswith(LOCAL_NAMES))


class _Exchange:
    """A request and its answer as they pass: what is added to the answer, and what is noted of both."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, added: dict[str, str]) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send, self._added = receive, send, added
        self._head = scope["method"] == "HEAD"
        length = headers.get("content-length", "")
        self._body_read = "transfer-encoding" not in headers and length in ("", "0")
        # A client that was to wait for leave to send its body may never send it.
        small = length.isdigit() and int(length) <= DROPPED_BYTES
        self._drops_body = small and "expect" not in headers
        self.status, self.sent = 0, 0
        self.closing = False  # whether the connection ends with this answer, by `close`

    async def receive(self) -> Message:
        message = await self._receive()
        self._body_read = self._body_read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.closing = not self._body_read and not self._drops_body
            out = MutableHeaders(scope=message)
            for name, value in self._added.items():
                out[name] = value
            present = {name.lower() for name, _ in out.raw}
            out.raw.extend(header for header in _SECURITY_HEADERS if header[0] not in present)
            if self.closing:
                out["Connection"] = "close"
        else:
            if self._head:
                message = {**message, "body": b""}
            self.sent += len(message.get("body", b""))
            if self.closing:
                message = {**message, "more_body": True}  # its end, and with it the close, comes by `close`
        await self._send(message)

    async def send_problem(self, error: ServiceError, request_id: str) -> None:
        body = json.dumps(problem(error.status, error.code, error.detail, request_id)).encode()
        headers = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        if error.retry_after:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def close(self) -> None:
        """Drop what the client still sends until it has read its answer and stops, or for a moment; then end it."""
        dropped = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while dropped < LINGER_BYTES:
                    message = await self._receive()
                    if not message.get("more_body", False):
                        break
                    dropped += len(message["body"])
        await self._send({"type": "http.response.body", "body": b""})


class RequestContext:
    """Pure ASGI, so that streaming and hang-ups pass through untouched.

    HEAD is answered as GET is, without the body, wherever there is a GET.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, log_health: bool = True, tracer: tracing.Tracer | None = None
    ) -> None:
        self.app, self.metrics, self.log_health, self.tracer = app, metrics, log_health, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers, method = Headers(scope=scope), scope["method"]
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, started=started)
        span = self.tracer.request(headers) if self.tracer else None
        if span:
            tracing.current.set(span)
        trace = tracing.trace(span) if span else _trace(headers)
        added = {"X-Request-ID": request_id} | ({"traceparent": trace["traceparent"]} if trace else {})
        exchange = _Exchange(scope, receive, send, added)
        if method == "HEAD":
            scope = {**scope, "method": "GET"}
        try:
            await self._answer(scope, exchange)
        finally:
            seconds = time.perf_counter() - started
            route = self._note(scope, method, exchange, seconds, trace)
            if self.tracer and span:
                self.tracer.ended(span, method, route, exchange.status)
        if exchange.closing:
            await exchange.close()

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        """Answer by the application, or by a problem where it cannot."""
        state = scope["state"]
        request_id = state["request_id"]
        try:
            if refusal := scope.get("extensions", {}).get(REFUSAL):
                raise refusal
            await self.app(scope, exchange.receive, exchange.send)
        except ServiceError as error:  # raised before the routes
            state["code"] = error.code
            await exchange.send_problem(error, request_id)
        except asyncio.CancelledError:
            if not exchange.status:  # the grace time is over
                stopping = NotReady("the service is stopping")
                state["code"] = stopping.code
                await exchange.send_problem(stopping, request_id)
            raise
        except Exception:
            logger.exception("unexpected error", extra={"fields": {"request_id": request_id}})
            if exchange.status:
                raise
            await exchange.send_problem(ServiceError("an unexpected error; it is logged"), request_id)

    def _note(
        self, scope: Scope, method: str, exchange: _Exchange, seconds: float, trace: dict[str, str] | None
    ) -> str:
        """Count and log the request; returns its route."""
        route = getattr(scope.get("route"), "path", None) or "other"  # the pattern, so that labels stay few
        method = method if method in METHODS else "other"
        self.metrics.requests.labels(method, route, str(exchange.status)).inc()
        self.metrics.duration.labels(route).observe(seconds)
        if exchange.status < 400 and not self.log_health and route.startswith(HEALTH):
            return route
        client, state = scope.get("client"), scope["state"]
        fields = {
            "request_id": state["request_id"],
            "client": client[0] if client else None,
            "method": method,
            "path": scope["path"][:200],  # without the query, headers and body: they may hold secrets
            "status": exchange.status,
            "ms": round(1000 * seconds, 2),
            "bytes_out": exchange.sent,
        }
        if code := state.get("code"):
            fields["code"] = code
        if trace:
            fields |= {name: value for name, value in trace.items() if name != "traceparent"}
        logger.info("request", extra={"fields": fields})
        return route


def _trace(headers: Headers) -> dict[str, str] | None:
    """The caller's place in a trace, and this request's below it (W3C Trace Context); None without a valid header."""
    given = headers.get("traceparent")
    found = TRACEPARENT.fullmatch(given) if given else None
    if found is None or (given and given.startswith("00") and found[4]):
        return None
    span = secrets.token_hex(8)
    return {
        "trace_id": found[1],
        "parent_id": found[2],
        "span_id": span,
        "traceparent": f"00-{found[1]}-{span}-{found[3]}",
    }
