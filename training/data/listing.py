"""What the readers of all layouts give: the pictures a set names, with captions and split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.errors import DataError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture's bytes are; `inside` is its path in the set's folder or tar."""

    inside: str
    path: Path
    offset: int  # bytes; in a Parquet file the row
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What an annotation file says about one picture."""

    name: str
    captions: Sequence[str]
    split: str | None = None  # None: nothing is said; "": the set has splits, and this picture none that is known
    place: Place | None = None  # where the captions lie beside the pictures


def text_of(file: Path) -> str:
    """A file of text, without the mark that Windows puts first; every line end is a line feed."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error}); save it as UTF-8") from error


def json_of(text: str, where: str) -> Any:
    """Parsed JSON; `where` names file and line of it in the error."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error})") from error


def described(entries: Sequence[object], what: str) -> str:
    """A count with its noun: "1 picture", "2 pictures"."""
    return f"{len(entries)} {what}{'' if len(entries) == 1 else 's'}"
