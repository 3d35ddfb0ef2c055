"""multipart/form-data as it streams in, kept in memory: python-multipart finds the parts, limits are checked here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import BadMultipart, BadParameter


@dataclass(slots=True)
class Part:
    """One part of a form; some clients send a file without a name for it, as text fields are."""

    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


class _Parts:
    """What the parser calls; `parts` grows, the last one may not be complete yet."""

    def __init__(self, count: int) -> None:
        self.parts: list[Part] = []
        self.count, self.ended = count, False
        self._header, self._value = b"", b""

    def on_part_begin(self) -> None:
        if len(self.parts) > self.count:
            raise BadParameter(f"more than {self.count} parts in the form")
        self.parts.append(Part())
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise BadMultipart("the form cannot be read: a part has no name")
        part = self.parts[-1]
        part.name = options[b"name"].decode(errors="replace")
        if b"filename" in options:
            part.filename = options[b"filename"].decode(errors="replace")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += memoryview(data)[start:end]

    def on_end(self) -> None:
        self.ended = True


async def read_form(content_type: str, stream: AsyncIterator[bytes], count: int) -> list[Part]:
    """The parts of a form of this content type; raises `BadMultipart`, and `BadParameter` beyond `count` + 1 parts.

    One more than allowed, so that the caller may say more of a wrong count.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadMultipart("the form cannot be read: its content type has no boundary")
    parts = _Parts(count)
    callbacks: Any = {name: getattr(parts, name) for name in dir(parts) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)
        async for chunk in stream:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise BadMultipart(f"the form cannot be read: {error}") from error
    if not parts.ended:
        raise BadMultipart("the form cannot be read: it is cut off")
    return parts.parts
