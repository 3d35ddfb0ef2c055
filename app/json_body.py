"""JSON bodies that carry pictures: as one streams in, long strings are set aside as bytes, so what is parsed is small.

A body of megabytes costs what its bytes do, whatever is in it: no tree is built of more than `SMALL` bytes of JSON.
"""

from __future__ import annotations

import asyncio
import binascii
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from app.errors import BadJson, BadParameter, TooLarge

LONG = 4096  # bytes of a string from which on it is set aside
SMALL = 256 * 1024  # bytes of all that is not
SLACK = 1.5  # of a picture's size: base64 takes 4 / 3, and some programs break its lines or write \u002B for +
PIECE = 256 * 1024  # base64 decoded at once, a multiple of 4: others' requests go on in between
QUOTE, BACKSLASH = ord('"'), ord("\\")
INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)  # of a string, up to its end or the chunk's
URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(slots=True)
class JsonBody:
    """A parsed body; in `value` a short name stands for each string of `LONG` bytes and more."""

    value: dict[str, Any]
    _long: dict[str, bytearray] = field(default_factory=dict)

    def pop(self, text: str) -> bytearray:
        """What `text` of `value` is or stands for, which can be had once."""
        raw = self._long.pop(text, None)
        if raw is None:
            return bytearray(text.encode(errors="replace"))
        if BACKSLASH not in raw:
            return raw
        try:
            return bytearray(from_json(b'"' + raw + b'"').encode(errors="replace"))
        except ValueError as error:
            raise BadJson(f"the JSON cannot be read: {error}") from error


class _Cutter:
    """Takes the body in chunks; `small` is its JSON with names in place of the strings in `long`."""

    def __init__(self) -> None:
        self.small, self.long = bytearray(), dict[str, bytearray]()
        self._name = secrets.token_hex(8)  # which a client cannot know
        self._string: bytearray | None = None  # the one that is not complete yet
        self._escaped = False

    def feed(self, chunk: bytes) -> None:
        at = 0
        while at < len(chunk):
            if self._string is None:
                end = chunk.find(QUOTE, at)
                self.small += chunk[at : end if end >= 0 else None]
                if end >= 0:
                    self._string = bytearray()
                at = end + 1 or len(chunk)
            elif self._escaped:
                self._string.append(chunk[at])
                self._escaped = False
                at += 1
            else:
                end = chunk.find(QUOTE, at)
                if chunk.find(BACKSLASH, at, end if end >= 0 else None) >= 0:
                    inside = INSIDE.match(chunk, at)
                    assert inside is not None
                    end = inside.end()
                self._string += memoryview(chunk)[at : end if end >= 0 else None]
                at = end if end >= 0 else len(chunk)
                if at < len(chunk):
                    if chunk[at] == QUOTE:
                        self._close(self._string)
                    else:
                        self._string.append(BACKSLASH)
                        self._escaped = True
                    at += 1
        if len(self.small) > SMALL:
            raise TooLarge(f"the JSON is larger than {SMALL} bytes without its pictures")

    def _close(self, string: bytearray) -> None:
        if len(string) >= LONG:
            name = f"{self._name}-{len(self.long)}"
            self.long[name], string = string, bytearray(name.encode())
        self.small += b'"' + string + b'"'
        self._string = None


async def read_json(stream: AsyncIterator[bytes]) -> JsonBody:
    """The JSON object of a body; raises `BadJson`, and `TooLarge` for much that is no picture."""
    cutter = _Cutter()
    async for chunk in stream:
        cutter.feed(chunk)
    try:
        value = from_json(bytes(cutter.small), allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise BadJson(f"the JSON cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BadJson("the JSON must be an object")
    return JsonBody(value, cutter.long)


async def from_base64(text: bytearray, limit: int) -> bytes:
    """The bytes of base64, plain or URL-safe, or of a `data:` URL in it; raises `TooLarge` before anything is decoded.

    text: is used up, so that memory holds the picture twice at most. limit: bytes of the file.
    """
    if text[:5].lower() == b"data:":
        start = text.find(b",", 0, 1000) + 1
        if not text[:start].lower().endswith(b";base64,"):
            raise BadParameter("the data: URL has no base64 in it; it begins with data:image/...;base64,")
        del text[:start]
    if any(character in text for character in b"-_ \t\r\n"):
        text = text.translate(URL_SAFE, b" \t\r\n")
    digits = text.find(b"=") % (len(text) + 1)  # all of it, where there is no padding
    if (size := 3 * digits // 4) > limit:
        raise TooLarge(f"the picture has {size} bytes; the limit is {limit}")
    if digits % 4 == 1:
        raise BadParameter("the picture is no base64, or its base64 is cut off")
    text += b"=" * (-len(text) % 4)
    if digits < len(text) - 2:
        raise BadParameter("the base64 of the picture goes on after its end")
    made = bytearray()
    try:
        for at in range(0, len(text), PIECE):
            made += binascii.a2b_base64(text[at : at + PIECE], strict_mode=True)
            await asyncio.sleep(0)
    except binascii.Error as error:
        raise BadParameter(f"the picture is no base64: {error}") from error
    text.clear()
    return bytes(made)
