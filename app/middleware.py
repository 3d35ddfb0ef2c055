"""What every request gets: an id, security headers, a line in the access log, a count, and never a bare 500."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PROBLEM_TYPE, problem
from app.metrics import Metrics

logger = logging.getLogger("app.access")

# A connection that is closed while its client still sends may cost the client its answer. So the rest of
# a refused body is received and dropped if it is this small, and else for this long, then cut off.
DROPPED_BYTES = 128_000_000
LINGER_BYTES, LINGER_SECONDS = 8_000_000, 1.0
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
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


class RequestContext:
    """Pure ASGI, so that streaming and hang-ups pass through untouched."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, started=started)
        status, body_read, closing, sent = 0, not _has_body(headers), False, 0

        async def receive_and_note() -> Message:
            nonlocal body_read
            message = await receive()
            body_read = body_read or not message.get("more_body", False)
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status, closing, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    out.setdefault(name, value)
                # A client that was to wait for leave to send its body may never send it.
                closing = not body_read and (_declared(headers) > DROPPED_BYTES or "expect" in headers)
                if closing:
                    out["Connection"] = "close"
            else:
                sent += len(message.get("body", b""))
                if closing:
                    message = {**message, "more_body": True}  # its end, and with it the close, comes below
            await send(message)

        try:
            await self.app(scope, receive_and_note, send_with_headers)
        except Exception:
            logger.exception("unexpected error", extra={"fields": {"request_id": request_id}})
            if status:
                raise
            await _send_problem(
                send_with_headers, 500, "internal_error", "an unexpected error; it is logged", request_id
            )
        finally:
            seconds = time.perf_counter() - started
            self._note(scope, status, seconds, sent, state)
        if closing:
            await _linger(receive)
            await send({"type": "http.response.body", "body": b""})

    def _note(self, scope: Scope, status: int, seconds: float, sent: int, state: dict[str, object]) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"  # the pattern, so that labels stay few
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.requests.labels(method, route, str(status)).inc()
        self.metrics.duration.labels(route).observe(seconds)
        client = scope.get("client")
        fields = {
            "request_id": state["request_id"],
            "client": client[0] if client else None,
            "method": method,
            "path": scope["path"][:200],  # without the query, headers and body: they may hold secrets
            "status": status,
            "ms": round(1000 * seconds, 2),
            "bytes_out": sent,
        }
        if code := state.get("code"):
            fields["code"] = code
        logger.info("request", extra={"fields": fields})


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _declared(headers: Headers) -> float:
    """Bytes the body has by its headers; infinite where they do not say."""
    declared = headers.get("content-length", "")
    return int(declared) if declared.isdigit() else float("inf")


async def _linger(receive: Receive) -> None:
    """Drop what the client still sends until it has read its answer and stops, or for a moment."""
    dropped = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while dropped < LINGER_BYTES:
                message = await receive()
                if not message.get("more_body", False):
                    return
                dropped += len(message["body"])


async def _send_problem(send: Send, status: int, code: str, detail: str, request_id: str) -> None:
    body = json.dumps(problem(status, code, detail, request_id)).encode()
    headers = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
