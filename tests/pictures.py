"""Pictures for the tests, made on the spot."""

from __future__ import annotations

import io
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
