"""Pictures out of a request's body: limits hold while it streams in, and nothing is written to disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Counter, Gauge
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from app.errors import BadMultipart, BadParameter, BodyTimeout, ClientGone, Overloaded, TooLarge, UnsupportedMedia

ENVELOPE = 64 * 1024  # bytes that a form may hold besides its files
Take = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a request."""

    filename: str
    data: bytes


class UploadMemory:
    """The memory that all bodies together may hold."""

    def __init__(self, limit: int, gauge: Gauge, rejected: Counter) -> None:
        self.limit, self.gauge, self.rejected = limit, gauge, rejected
        self.used = 0

    @contextmanager
    def hold(self) -> Iterator[Take]:
        """A function that takes bytes for one request, all given back at the end; raises `Overloaded`."""
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if self.used + count > self.limit:
                self.rejected.labels("upload_memory").inc()
                raise Overloaded("too many uploads at once")
            held += count
            self.used += count
            self.gauge.inc(count)

        try:
            yield take
        finally:
            self.used -= held
            self.gauge.dec(held)


class _InMemoryParser(MultiPartParser):
    spool_max_size = 0  # Starlette would write files above 1 MB to disk; 0 is never


async def read_image(request: Request, limit: int, seconds: float, take: Take) -> Upload:
    """The one picture of `request`: the form field `image`, or a raw body with a picture's content type.

    limit: bytes of the file. seconds: for the whole body.
    Raises `TooLarge`, `BodyTimeout`, `BadMultipart`, `BadParameter` or `UnsupportedMedia`.
    """
    media_type = _media_type(request)
    if media_type == "multipart/form-data":
        return (await _read_form(request, "image", 1, limit, seconds, take))[0]
    if media_type.startswith("image/") or media_type == "application/octet-stream":
        chunks = [chunk async for chunk in _stream(request, limit, seconds, take)]
        return Upload("", b"".join(chunks))
    raise UnsupportedMedia(
        "send the picture as the field 'image' of multipart/form-data, or as the body with its image/* content type"
    )


async def read_images(request: Request, count: int, limit: int, seconds: float, take: Take) -> list[Upload]:
    """The pictures of the form field `images`: at most `count`, at most `limit` bytes in all; else as `read_image`."""
    if _media_type(request) != "multipart/form-data":
        raise UnsupportedMedia("send the pictures as fields 'images' of multipart/form-data")
    return await _read_form(request, "images", count, limit, seconds, take)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read_form(request: Request, name: str, count: int, limit: int, seconds: float, take: Take) -> list[Upload]:
    stream = _stream(request, limit + ENVELOPE, seconds, take)
    # One more than allowed, so that a wrong count is told apart from a broken form.
    parser = _InMemoryParser(request.headers, stream, max_files=count + 1, max_fields=8, max_part_size=ENVELOPE)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise BadParameter(f"more than {count} files in the form") from error
        raise BadMultipart(f"the form cannot be read: {error.message}") from error
    try:
        fields = form.multi_items()
        for key, value in fields:
            if key != name:
                raise BadParameter(f"unknown form field {key[:50]!r}; the field is {name!r}")
            if not isinstance(value, UploadFile):
                raise BadParameter(f"the form field {name!r} must be a file: its part has no filename")
        if not fields:
            raise BadParameter(f"the form field {name!r} is missing")
        if len(fields) > count:
            raise BadParameter(f"at most {count} files named {name!r} in one request")
        files = [value for _, value in fields if isinstance(value, UploadFile)]
        return [Upload(file.filename or "", await file.read()) for file in files]
    finally:
        await form.close()


async def _stream(request: Request, limit: int, seconds: float, take: Take) -> AsyncGenerator[bytes, None]:
    """The body's chunks; stops reading at the first byte too many, or once `seconds` have passed."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body has {declared} bytes; the limit is {limit}")
    received = 0
    chunks = request.stream()
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            async with asyncio.timeout_at(end):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise BodyTimeout(f"the body did not arrive within {seconds:g} seconds") from error
        except ClientDisconnect as error:
            raise ClientGone("the client hung up while sending") from error
        received += len(chunk)
        if received > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
        take(len(chunk))
        yield chunk
