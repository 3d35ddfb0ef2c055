"""Small files for sets of captions."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from training.data import CaptionData

_NUMBERS = itertools.count()


def jpeg(colour: str = "red", size: tuple[int, int] = (8, 6), **options: Any) -> bytes:
    """A picture whose bytes are no other's, unless it is asked for with a comment of its own."""
    options.setdefault("comment", str(next(_NUMBERS)))
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def write(file: Path, content: bytes | str | Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def write_tar(file: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def names(data: CaptionData, split: str) -> list[str]:
    return [picture.name for picture in data.split(split)]


def captions(data: CaptionData) -> dict[str, tuple[str, ...]]:
    return {picture.name: picture.captions for picture in data.pictures}


def karpathy(*images: dict[str, Any]) -> dict[str, Any]:
    return {"dataset": "some", "images": list(images)}


def image(filename: str, split: str = "train", *captions: str, **more: Any) -> dict[str, Any]:
    return {"filename": filename, "split": split, "sentences": [{"raw": c} for c in captions or ("a dog",)], **more}


def write_pictures(folder: Path, *some: str) -> None:
    for name in some:
        write(folder / name, jpeg())
