"""Pictures with their captions, whatever layout they came in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from model import images
from model.errors import ImageError
from training.data import parquet
from training.data.errors import DataError

MAX_PIXELS = 2**30  # far more than any photograph: the set is trusted


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its captions. The bytes stay where they are: in a file, an uncompressed tar or a Parquet file."""

    name: str  # as the captions name it; unique in its set
    captions: tuple[str, ...]  # as people wrote them, white space tidied
    split: str  # train, val or test
    source: str  # the set's name
    path: Path  # the picture's file, or the tar or Parquet file it lies in
    offset: int = 0  # bytes into `path`; in a Parquet file the row
    size: int = 0  # bytes

    def read_bytes(self, last: int | None = None) -> bytes:
        """The encoded picture, or its `last` bytes. Opens the file anew, so any thread or forked worker may call it."""
        start = 0 if last is None else max(self.size - last, 0)
        if self.path.suffix == ".parquet":
            return parquet.picture_in(self.path, self.offset)[start:]
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(fd, self.size - start, self.offset + start)
        finally:
            os.close(fd)

    def open(self) -> Image.Image:
        """The decoded picture, by the rules by which the service decodes. Raises `DataError` where it is broken."""
        try:
            return images.read(self.read_bytes(), MAX_PIXELS).image
        except (OSError, ImageError) as error:
            raise DataError(f"{self.path}: the picture {self.name} cannot be decoded: {error}") from error


@dataclass(frozen=True, slots=True)
class CaptionData:
    """The pictures of one or more sets, and how many were left out and why.

    skipped: reason -> count of "no captions", "no picture", "broken picture", "no split" (the set has a list of
        splits, and the picture is not on it) and "twin held out" (its very bytes are in the validation or test part
        too).
    examples: reason -> the first few names.
    """

    pictures: tuple[Picture, ...]
    skipped: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def split(self, name: str) -> list[Picture]:
        """The pictures of the split `name`, in the order of the set."""
        return [picture for picture in self.pictures if picture.split == name]

    def required(self, name: str) -> list[Picture]:
        """`split(name)`; raises `DataError` with what to do where it is empty."""
        pictures = self.split(name)
        if not pictures:
            there = ", ".join(f"{count} {split}" for split, count in Counter(p.split for p in self.pictures).items())
            advice = (
                f"hold some out with PATH:{name}=N" if name != "train" else "hold fewer out, or add a set to train on"
            )
            raise DataError(f"no {name} pictures in the data; {advice} (there are: {there or 'none'})")
        return pictures
