"""Pictures to measure with: drawn from a seed, given, or made to be costly."""

from __future__ import annotations

import io
import re
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def drawn(count: int, width: int, height: int) -> Iterator[Image.Image]:
    """Pictures of soft colours, noise and shapes, the same every time: they compress about as photographs do."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        few = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        soft = few.resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(soft)
        for _ in range(6):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
            r = int(rng.integers(height // 20, height // 4))
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
        noise = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
        yield Image.fromarray(np.clip(np.asarray(soft, np.float32) + noise, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 88) -> bytes:
    """`image` as a JPEG, by default of ordinary quality."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def read_pictures(source: Path | None, count: int) -> list[bytes]:
    """`count` picture files: from a folder or a tar, or drawn at 640 x 480."""
    if source is None:
        return [jpeg(image) for image in drawn(count, 640, 480)]
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        found = [path.read_bytes() for path in files[:count]]
    else:
        with tarfile.open(source) as tar:
            members = [member for member in tar if member.isfile()][:count]
            found = [handle.read() for member in members if (handle := tar.extractfile(member))]
    if not found:
        sys.exit(f"error: no pictures in {source}")
    return found


def repeat_scan(data: bytes, times: int) -> bytes:
    """A progressive JPEG with its last scan `times` more: each makes the decoder walk over every pixel."""
    last = [match.start() for match in re.finditer(rb"\xff\xda", data)][-1]
    return data[:-2] + data[last:-2] * times + data[-2:]


def many_scans(side: int, scans: int) -> bytes:
    """A small progressive JPEG of side x side pixels that repeats its last scan."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG", progressive=True)
    return repeat_scan(buffer.getvalue(), scans)


def hostile(size: int = 19_000_000) -> dict[str, bytes]:
    """Files of up to `size` bytes that are small pictures, if any, behind what parsers take long to walk through."""
    jpeg, gif, png = _small("JPEG"), _small("GIF"), _small("PNG")
    empty = struct.pack(">I", 0) + b"teXt" + struct.pack(">I", zlib.crc32(b"teXt"))
    wide, lines = 6_600_000, 1
    bmp = b"BM" + struct.pack("<IHHI", 54 + 3 * wide, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, wide, lines, 1, 24, 0, 0, 0, 0, 0, 0)

    def fill(part: bytes) -> bytes:
        return part * (size // len(part))

    return {
        "JPEG, empty EXIF segments": jpeg[:2] + fill(b"\xff\xe1\0\x09Exif\0\0a") + jpeg[2:],
        "JPEG, padding": jpeg[:2] + fill(b"\xff") + jpeg[2:],
        "JPEG, empty segments": jpeg[:2] + fill(b"\xff\xe5\0\x02") + jpeg[2:],
        "JPEG, 50,000 scans": many_scans(2000, 50_000),
        "JPEG, overlapping EXIF tags": overlapping_tags(),
        "GIF, comments": gif[:13] + fill(b"\x21\xfe\x01a\0") + gif[13:],
        "PNG, empty chunks": png[:33] + fill(empty) + png[33:],
        "BMP of 6,600,000 x 1": bmp + bytes(min(3 * wide, size - len(bmp))),
    }


def overlapping_tags(count: int = 5000, each: int = 60_000) -> bytes:
    """A JPEG whose EXIF has many tags that all point at the same bytes: as many copies of them."""
    entries = b"".join(struct.pack("<HHII", tag, 7, each, 8) for tag in range(1000, 1000 + count))
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", count) + entries + bytes(4)
    jpeg, segment = _small("JPEG"), b"Exif\0\0" + tiff.ljust(65_000, b"\0")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def _small(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(buffer, format)
    return buffer.getvalue()
