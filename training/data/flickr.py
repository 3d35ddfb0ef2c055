"""Flickr8k's and Flickr30k's own caption files; their `captions.txt` copies are tables."""

from __future__ import annotations

import re
from pathlib import Path

from training.data.errors import DataError
from training.data.listing import Entry, text_of

_TOKEN = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)")
# One line of the real file lacks its second bar: "2199200615.jpg| 4   A dog runs across the grass ."
_RESULT = re.compile(r"(?P<name>[^|]+)\|\s*\d+\s*\|?(?P<caption>.*)")


def read_tokens(file: Path) -> list[Entry]:
    """`Flickr8k.token.txt` and `results_20130124.token`: lines "name#number<tab>caption"."""
    return _read(file, _TOKEN, "name.jpg#0<tab>caption")


def read_results(file: Path) -> list[Entry]:
    """Flickr30k's `results.csv`: a header, then lines "name| number| caption", quotes being quotes."""
    return _read(file, _RESULT, "name.jpg| 0| caption")


def has_tokens(line: str) -> bool:
    """Whether a line is one of a token file."""
    return _TOKEN.fullmatch(line) is not None


def has_results(line: str) -> bool:
    """Whether a line is the header of Flickr30k's `results.csv`, or one of its lines."""
    return re.match(r"\s*image_name\s*\|\s*comment_number\s*\||[^|]+\|\s*\d+\s*\|", line) is not None


def _read(file: Path, pattern: re.Pattern[str], expected: str) -> list[Entry]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text_of(file).split("\n"), 1):
        if not line.strip() or (number == 1 and line.lstrip().startswith("image_name")):
            continue
        if not (match := pattern.fullmatch(line)):
            raise DataError(f"{file}, line {number}: expected {expected!r}, not {line[:80]!r}")
        captions.setdefault(match["name"].strip(), []).append(match["caption"])
    return [Entry(name, mine) for name, mine in captions.items()]
