"""Pictures to measure with: drawn from a seed, or given."""

from __future__ import annotations

import io
import sys
import tarfile
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


def jpeg(image: Image.Image) -> bytes:
    """`image` as a JPEG of ordinary quality."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
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
