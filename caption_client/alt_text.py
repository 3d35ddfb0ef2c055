"""Keeps a caption with its picture: in a text file beside it, in its metadata, or in an XMP file beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, Self, get_args

from caption_client import files, metadata
from caption_client.exiftool import ExifToolError
from caption_client.metadata import Metadata, Standard, Written

TextFile = Literal["sidecar", "txt"]
Place = Literal[TextFile, metadata.Place]
PLACES: tuple[Place, ...] = get_args(TextFile) + metadata.PLACES


class AltTextError(Exception):
    """This picture cannot carry a text where it was asked to."""


class AltText:
    """Reads and writes the texts of pictures in one `place`; to be closed, or used as a context manager.

    standards: in which metadata. dry_run: nothing is changed, and all is said as if it were.
    Raises `AltTextError` where XMP is wanted and there is no ExifTool.
    """

    def __init__(self, place: Place, standards: Collection[Standard] = metadata.DEFAULT, dry_run: bool = False) -> None:
        self.place, self.dry_run = place, dry_run
        self._metadata: Metadata | None = None
        if place == "sidecar" or place == "txt":
            return
        try:
            self._metadata = Metadata(place, standards, dry_run)
        except ExifToolError as error:
            raise AltTextError(str(error)) from error

    def read(self, path: Path) -> str | None:
        """The text kept with the picture at `path`, None without one. Raises `AltTextError`, `OSError`."""
        if self._metadata is None:
            beside = sidecar(path, self.place)
            return beside.read_text("utf-8", errors="replace").strip() if beside.is_file() else None
        try:
            return self._metadata.read(path)
        except ExifToolError as error:
            raise AltTextError(str(error)) from error

    def write(self, path: Path, text: str, force: bool = False, keywords: Sequence[str] = ()) -> Written:
        """Keep `text` with the picture at `path`, all or nothing; a person's text is kept.

        force: replace that too (in XMP its default language; others stay). keywords: added to those of a picture's
        metadata, none of which is taken away. Raises as `read`.
        """
        if self._metadata is not None:
            try:
                return self._metadata.write(path, text, force, keywords)
            except ExifToolError as error:
                raise AltTextError(f"{error}; use --write-alt sidecar") from error
        text, beside = " ".join(text.split()), sidecar(path, self.place)
        if self.place == "txt" and (others := files.same_stem(path, files.SUFFIXES)):
            raise AltTextError(f"{others[0].name} would have the same text file; use --write-alt sidecar")
        old = self.read(path)
        if not force and old is not None and old != text:
            return Written(None, kept=True)  # a text file does not say who wrote it
        if old != text and not self.dry_run:
            files.replace(beside, f"{text}\n".encode())
        return Written(beside)

    def close(self) -> None:
        if self._metadata is not None:
            self._metadata.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sidecar(path: Path, place: Place) -> Path:
    """photo.jpg -> photo.jpg.txt, or for `txt` photo.txt, which training and tagging tools read."""
    return path.with_suffix(".txt") if place == "txt" else path.with_name(f"{path.name}.txt")
