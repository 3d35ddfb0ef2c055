"""Pictures for the tests, made on the spot."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import pillow_heif
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF")
CONTENT_TYPES = {format: f"image/{format.lower()}" for format in FORMATS}


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """`image` as a file."""
    buffer = io.BytesIO()
    if format == "HEIF":  # the package that reads it here cannot write it
        pillow_heif.from_pillow(image).save(buffer, quality=90, **options)
        return buffer.getvalue()
    if format == "AVIF":
        options.setdefault("speed", 10)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(colour: tuple[int, int, int], format: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    """A picture of one colour."""
    return encode(Image.new("RGB", size, colour), format)


def quarters(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Red, green, blue and yellow quarters: it differs from all of its turns and mirror images."""
    width, height = size
    image = Image.new("RGB", size, "red")
    image.paste("green", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    image.paste("yellow", (width // 2, height // 2, width, height))
    return image


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG written by hand: any header, truthful or not, over any data."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def many_scans(side: int, scans: int) -> bytes:
    """A small progressive JPEG that repeats its last scan: each makes the decoder walk over every pixel."""
    data = encode(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    last = [match.start() for match in re.finditer(rb"\xff\xda", data)][-1]
    return data[:-2] + data[last:-2] * scans + data[-2:]


def bombs(side: int = 30_000) -> dict[str, bytes]:
    """Small files of every format whose headers announce side x side pixels."""
    small = {format: plain((1, 2, 3), format) for format in FORMATS}
    at = small["JPEG"].index(b"\xff\xc0")
    jpeg = small["JPEG"][: at + 5] + struct.pack(">HH", side, side) + small["JPEG"][at + 9 :]
    webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + 2 * struct.pack("<I", side - 1)[:3] + small["WEBP"][12:]
    at, heif = small["AVIF"].index(b"ispe") + 8, small["HEIF"].index(b"ispe") + 8
    bmp, gif, tiff = small["BMP"], small["GIF"], Image.new("L", (24, 16))
    return {
        "JPEG": jpeg,
        "PNG": png(side, side, 8, 2, b"\0" * 100_000),
        "WEBP": webp,
        "AVIF": small["AVIF"][:at] + struct.pack(">II", side, side) + small["AVIF"][at + 8 :],
        "HEIF": small["HEIF"][:heif] + struct.pack(">II", side, side) + small["HEIF"][heif + 8 :],
        "GIF": gif[:6] + struct.pack("<HH", side, side) + gif[10:],
        "BMP": bmp[:18] + struct.pack("<ii", side, side) + bmp[26:],
        "TIFF": encode(tiff, "TIFF", tiffinfo={}).replace(
            struct.pack("<HHII", 256, 4, 1, 24), struct.pack("<HHII", 256, 4, 1, side)
        ).replace(struct.pack("<HHII", 257, 4, 1, 16), struct.pack("<HHII", 257, 4, 1, side)),
    }  # fmt: skip


def hostile(size: int = 19_000_000) -> dict[str, bytes]:
    """Files of up to `size` bytes that are small pictures, if any, behind what parsers take long to walk through."""
    jpeg, gif, plain_png = plain((1, 2, 3), "JPEG"), plain((1, 2, 3), "GIF"), plain((1, 2, 3), "PNG")
    empty = struct.pack(">I", 0) + b"teXt" + struct.pack(">I", zlib.crc32(b"teXt"))
    wide, lines = 6_600_000, 1
    bmp = b"BM" + struct.pack("<IHHI", 54 + 3 * wide, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, wide, lines, 1, 24, 0, 0, 0, 0, 0, 0)

    def fill(part: bytes) -> bytes:
        return part * (size // len(part))

    return {
        "exif": jpeg[:2] + fill(b"\xff\xe1\0\x09Exif\0\0a") + jpeg[2:],
        "padding": jpeg[:2] + fill(b"\xff") + jpeg[2:],
        "segments": jpeg[:2] + fill(b"\xff\xe5\0\x02") + jpeg[2:],
        "gif": gif[:13] + fill(b"\x21\xfe\x01a\0") + gif[13:],
        "png": plain_png[:33] + fill(empty) + plain_png[33:],
        "bmp": bmp + bytes(min(3 * wide, size - len(bmp))),
        "scans": many_scans(2000, 50_000),
        "tags": overlapping_tags(),
    }


def overlapping_tags(count: int = 12_000, each: int = 60_000) -> bytes:
    """A JPEG whose EXIF has many tags that all point at the same bytes: as many copies of them."""
    entries = b"".join(struct.pack("<HHII", tag, 7, each, 8) for tag in range(1000, 1000 + min(count, 5000)))
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries) // 12) + entries + bytes(4)
    jpeg, segment = plain((1, 2, 3), "JPEG"), b"Exif\0\0" + tiff.ljust(65_000, b"\0")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
