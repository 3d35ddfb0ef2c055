"""Pictures with their captions, whatever layout they came in."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps


class DataError(ValueError):
    """A data set cannot be read; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its captions. The bytes stay where they are: in a file, or inside an uncompressed tar."""

    name: str  # as the captions name it; unique in its set
    captions: tuple[str, ...]  # as people wrote them, white space tidied
    split: str  # train, val or test
    source: str  # the set's name
    path: Path  # the picture's file, or the tar it lies in
    offset: int = 0  # bytes into `path`
    size: int = 0  # bytes

    def read_bytes(self) -> bytes:
        """The encoded picture. Opens the file anew each time, so any thread or forked worker may call it."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(fd, self.size, self.offset)
        finally:
            os.close(fd)

    def open(self) -> Image.Image:
        """The decoded picture: RGB, upright, transparency over white. Raises `DataError` where it is broken."""
        try:
            with Image.open(io.BytesIO(self.read_bytes())) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
                if upright.has_transparency_data:
                    rgba = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
                return upright.convert("RGB")
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise DataError(f"{self.path}: the picture {self.name} cannot be decoded: {error}") from error


@dataclass(frozen=True, slots=True)
class CaptionData:
    """The pictures of one or more sets, and how many were left out and why.

    skipped: reason -> count of "no captions", "no picture", "broken picture" and "no split" (the set
        has a list of splits, and the picture is not on it).
    """

    pictures: tuple[Picture, ...]
    skipped: Mapping[str, int]

    def split(self, name: str) -> list[Picture]:
        """The pictures of the split `name`, in the order of the set."""
        return [picture for picture in self.pictures if picture.split == name]
