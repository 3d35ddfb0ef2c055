"""Calls the application below HTTP, where a test decides when each chunk arrives and when the client is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.types import Message

Receive = Callable[[], Awaitable[Message]]


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[FastAPI]:
    """`app` between its start-up and its shutdown."""
    async with app.router.lifespan_context(app):
        yield app


@dataclass
class Reply:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


async def call(
    app: FastAPI,
    path: str,
    receive: Receive,
    headers: dict[str, str] | None = None,
    replied: asyncio.Event | None = None,
) -> Reply:
    """POST to `path`; what `receive` gives is the body; `replied` is set once the answer's body was sent."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "scheme": "http",
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    reply = Reply()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            reply.body += message.get("body", b"")
            if replied is not None:
                replied.set()

    await app(scope, receive, send)
    return reply


def body(*chunks: bytes, gone: asyncio.Event | None = None) -> Receive:
    """Gives `chunks`, and after them nothing until `gone` is set."""
    left = list(chunks)

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    return receive


async def until(condition: Callable[[], bool]) -> None:
    """Let everything else run until `condition` holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # the conditions are plain attributes: nothing to wait on
            await asyncio.sleep(0.001)


def assert_(condition: bool) -> None:
    """`assert` as an expression."""
    assert condition
