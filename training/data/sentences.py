"""Captions without their pictures: JSON lines, each an object whose "captions" are of one picture."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from model.vocabulary import words_of
from training.data.captions import CaptionData
from training.data.errors import DataError

log = logging.getLogger(__name__)


def read_sentences(paths: Sequence[Path], apart_from: CaptionData) -> list[tuple[str, ...]]:
    """The captions of each line of the files (`.jsonl`, or `.jsonl.gz`), white space tidied.

    Captions with the very words of a validation or test caption of `apart_from` are left out: a figure on
    these parts would measure memory. So are captions without a word, and lines that keep no caption.
    Raises `DataError`, with file and line, where a file is missing or a line is something else.
    """
    held_out = {tuple(words_of(c)) for p in apart_from.pictures if p.split != "train" for c in p.captions}
    lines: list[tuple[str, ...]] = []
    known = wordless = 0
    for path in paths:
        for captions in _captions(path):
            kept = []
            for caption in captions:
                words = tuple(words_of(caption))
                if not words:
                    wordless += 1
                elif words in held_out:
                    known += 1
                else:
                    kept.append(" ".join(caption.split()))
            if kept:
                lines.append(tuple(kept))
    log.info("%d sentences of %d pictures; left out: %d with the words of a validation or test caption, %d without "
             "a word", sum(map(len, lines)), len(lines), known, wordless)  # fmt: skip
    return lines


def _captions(path: Path) -> Iterator[list[str]]:
    """The "captions" of each line of one file; empty lines are passed over."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                number += 1
                if not line.strip():
                    continue
                captions = json.loads(line)["captions"]
                if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
                    raise TypeError(f"captions are {str(captions)[:80]!r}")
                yield captions
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(
            f'{path}, line {number}: expected an object like {{"captions": ["A dog runs."]}} ({error!r})'
        ) from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read after line {number}: {error}") from error
