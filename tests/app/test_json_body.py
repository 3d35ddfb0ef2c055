from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.errors import BadJson, BadParameter, ServiceError, TooLarge
from app.json_body import LONG, SMALL, JsonBody, from_base64, read_json

LONG_TEXT = '"\\/é\n' * LONG


def read(body: bytes, size: int = 65536) -> JsonBody:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    return asyncio.run(read_json(chunks()))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10**6])
def test_strings_of_any_content_survive_in_any_chunks(size: int) -> None:
    value: dict[str, Any] = {"a": LONG_TEXT, "b": ['x"\\', {"c": "d" * LONG}], "é": None, "": "d" * (LONG - 1)}
    body = read(json.dumps(value).encode(), size)
    assert body.value["b"][0] == 'x"\\'
    assert body.value[""] == value[""]
    assert len(body.value["a"]) < 100  # a name
    assert body.pop(body.value["a"]).decode() == LONG_TEXT
    assert body.pop(body.value["b"][1]["c"]) == b"d" * LONG
    assert body.pop("plain") == b"plain"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"a', b"[]", b'"x"', b'{"a":NaN}', b'{"a":\x00}', b"[" * 5000, b'{"a":"' + b"x" * 9000,
     b'{"a":"\xff"}', b'{"a":1' + b"0" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_no_json_object_is_told(body: bytes) -> None:
    with pytest.raises(BadJson):
        read(body)


def test_much_that_is_no_picture_is_refused_as_it_comes() -> None:
    read_so_far = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read_so_far
        while True:
            read_so_far += 60_000
            yield b"[],{}," * 10_000

    with pytest.raises(TooLarge):
        asyncio.run(read_json(endless()))
    assert read_so_far <= SMALL + 60_000


def decode(text: bytes, limit: int = 10**6) -> bytes:
    return asyncio.run(from_base64(bytearray(text), limit))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 50, 600_000])
def test_base64_of_every_kind_is_read(length: int) -> None:
    data = random.Random(length).randbytes(length)
    for encode in (base64.b64encode, base64.encodebytes, base64.urlsafe_b64encode):
        text = encode(data)
        for form in (text, text.rstrip(b"=\n"), b"data:image/png;base64," + text, b"DATA:;x=y;base64," + text):
            assert decode(form) == data


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"!!!!", BadParameter),
        (b"Q", BadParameter),
        (b"QQ=A", BadParameter),
        (b"QQ==QQ==", BadParameter),
        (b"QQ===", BadParameter),
        (b"\xff\xfe", BadParameter),
        (b"data:image/png,abc", BadParameter),
        (b"data:image/png;base64", BadParameter),
        (base64.b64encode(bytes(101)), TooLarge),
        (b"data:;base64," + base64.b64encode(bytes(101)), TooLarge),
        (b"!" * 200, TooLarge),  # counted before it is looked at
    ],
)
def test_what_is_no_base64_or_too_much_is_told(text: bytes, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        decode(text, 100)
    assert decode(base64.b64encode(bytes(100)), 100) == bytes(100)


@pytest.mark.parametrize(("text", "words"), [(b"hello", "is no base64"), (b"QQ==QQ==", "goes on after its end")])
def test_what_is_wrong_with_base64_is_said(text: bytes, words: str) -> None:
    with pytest.raises(BadParameter, match=words):
        decode(text)
