"""Pictures out of a request's body: limits hold while it streams in, and nothing is written to disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Counter, Gauge
from starlette.requests import ClientDisconnect, Request

from app.errors import BadParameter, BodyTimeout, ClientGone, Overloaded, TooLarge, UnsupportedMedia
from app.pictures.forms import read_form
from app.schemas import CaptionParams

ENVELOPE = 64 * 1024  # bytes that a form may hold besides its files
ONE, MANY = ("image", "file"), ("images", "files")  # names of form fields; the first is the documented one
Reserve = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Upload:
    filename: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """The files of a request and the parameters that came with them, as text."""

    files: list[Upload]
    fields: dict[str, str]


class UploadMemory:
    """The memory that all bodies together may hold."""

    def __init__(self, limit: int, gauge: Gauge, rejected: Counter) -> None:
        self.limit, self.gauge, self.rejected = limit, gauge, rejected
        self.used = 0

    @contextmanager
    def hold(self) -> Iterator[Reserve]:
        """A function that takes bytes for one request, all given back at the end; raises `Overloaded`."""
        held = 0

        def reserve(count: int) -> None:
            nonlocal held
            if self.used + count > self.limit:
                self.rejected.labels("upload_memory").inc()
                raise Overloaded("too many uploads at once")
            held += count
            self.used += count
            self.gauge.inc(count)

        try:
            yield reserve
        finally:
            self.used -= held
            self.gauge.dec(held)


@dataclass(frozen=True, slots=True)
class Pace:
    """How slowly a body may come: at most `silence` seconds without a byte, and after so many `rate` bytes a second."""

    silence: float
    rate: float

    def end(self, now: float, started: float, received: int) -> float:
        """When to give up unless more has come by then."""
        quiet = now + self.silence
        return min(quiet, started + self.silence + received / self.rate) if self.rate else quiet


async def read_image(request: Request, limit: int, pace: Pace, reserve: Reserve) -> Form:
    """The one picture of `request`: the form field `image` or `file`, or the body itself, whatever its type says.

    limit: bytes of the file.
    Raises `TooLarge`, `BodyTimeout`, `BadMultipart`, `BadParameter` or `UnsupportedMedia`.
    """
    type = media_type(request)
    if type == "multipart/form-data":
        return await _read_form(request, ONE, 1, limit, pace, reserve)
    if type.startswith("multipart/"):
        raise UnsupportedMedia("send the picture as the field 'image' of multipart/form-data, or as the body itself")
    # curl calls any body a form, others call it nothing: its first bytes say what it is.
    return Form([Upload("", b"".join([chunk async for chunk in stream(request, limit, pace, reserve)]))], {})


async def read_images(request: Request, count: int, limit: int, pace: Pace, reserve: Reserve) -> Form:
    """The pictures of the form field `images`: at most `count`, at most `limit` bytes in all; else as `read_image`."""
    if media_type(request) != "multipart/form-data":
        raise UnsupportedMedia("send the pictures as fields 'images' of multipart/form-data, or in JSON")
    return await _read_form(request, MANY, count, limit, pace, reserve)


def media_type(request: Request) -> str:
    """What the request says its body is, without parameters; empty if it does not."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read_form(
    request: Request, names: tuple[str, ...], count: int, limit: int, pace: Pace, reserve: Reserve
) -> Form:
    body = stream(request, limit + ENVELOPE, pace, reserve)
    parts = await read_form(request.headers["content-type"], body, count + len(CaptionParams.model_fields))
    fields = {
        part.name: part.data.decode(errors="replace")
        for part in parts
        if part.filename is None and part.name in CaptionParams.model_fields
    }
    parts = [part for part in parts if part.filename is not None or part.name not in fields]
    for part in parts:
        if part.name not in names:
            raise BadParameter(f"unknown form field {part.name[:50]!r}; the field is {names[0]!r}")
        if part.filename is None and len(part.data) < 1000 and part.data.isascii():
            raise BadParameter(
                f"the form field {part.name!r} holds text and has no filename: send the file itself "
                f"(curl -F {part.name}=@FILE)"
            )
    if not parts:
        raise BadParameter(f"the form field {names[0]!r} is missing")
    if len(parts) > count:
        raise BadParameter(f"at most {count} files named {names[0]!r} in one request")
    return Form([Upload(part.filename or "", bytes(part.data)) for part in parts], fields)


async def stream(request: Request, limit: int, pace: Pace, reserve: Reserve) -> AsyncGenerator[bytes, None]:
    """The body's chunks; stops reading at the first byte too many, or once it comes too slowly."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body has {declared} bytes; the limit is {limit}")
    received = 0
    chunks = request.stream()
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        try:
            async with asyncio.timeout_at(pace.end(loop.time(), started, received)):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            silent = f"nothing came for {pace.silence:g} seconds"
            raise BodyTimeout(f"the body came too slowly: {silent}, or under {pace.rate:g} bytes a second") from error
        except ClientDisconnect as error:
            raise ClientGone("the client hung up while sending") from error
        received += len(chunk)
        if received > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
        reserve(len(chunk))
        yield chunk
