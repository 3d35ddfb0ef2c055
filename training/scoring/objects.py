"""Do captions name what is there? Their object words against those of the references.

A kind of thing that a caption names is right if any reference names it too: the share that is right tells what a
model makes up (CHAIR by references, Rohrbach et al. 2018, arXiv:1809.02156). What at least two references name is
there: the share of it that the caption names tells what a model overlooks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.scoring.metrics import bootstrap, interval

WORDS = Path(__file__).parent / "objects.txt"
AGREE = 2  # references that must name a thing for it to be there

_TERM = re.compile(r"(?:[^\W\d_]|-)+")


class Objects:
    """Kinds of things by the words that name them, as a file lists them: a kind a line, `#` begins a comment."""

    def __init__(self, path: Path = WORDS) -> None:
        self._kinds: dict[str, int] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            words = line.partition("#")[0].lower().split()
            kind = number
            for word in words:
                self._kinds.setdefault(word, kind)
        if not self._kinds:
            raise ValueError(f"{path} names no objects")
        self._phrases = [(word.replace("-", " "), word) for word in self._kinds if "-" in word]

    def named(self, text: str) -> set[int]:
        """The kinds of things that a text names."""
        text = text.lower()
        for phrase, word in self._phrases:
            text = text.replace(phrase, word)
        return {self._kinds[term] for term in _TERM.findall(text) if term in self._kinds}


@dataclass(frozen=True, slots=True)
class ObjectReport:
    """Counts a picture, each (N,): things said, those of them that are right, things there, those of them named."""

    said: NDArray[np.int64]
    right: NDArray[np.int64]
    there: NDArray[np.int64]
    named: NDArray[np.int64]

    @property
    def precision(self) -> float:
        """Percent of the things said that some reference names; 100 where nothing is said."""
        return _share(self.right.sum(), self.said.sum())

    @property
    def recall(self) -> float:
        """Percent of the things that at least two references name which the captions name."""
        return _share(self.named.sum(), self.there.sum())

    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals over pictures of both shares."""
        draws = bootstrap(len(self.said))
        return {
            "objects_right": interval(100 * (draws @ self.right) / np.maximum(draws @ self.said, 1)),
            "objects_found": interval(100 * (draws @ self.named) / np.maximum(draws @ self.there, 1)),
        }


def score_objects(captions: Sequence[str], references: Sequence[Sequence[str]], objects: Objects) -> ObjectReport:
    """Count the objects of one caption a picture against its references, raw text both."""
    rows = []
    for caption, texts in zip(captions, references, strict=True):
        mine, theirs = objects.named(caption), [objects.named(text) for text in texts]
        some: set[int] = set().union(*theirs)
        agreed = {kind for kind in some if sum(kind in their for their in theirs) >= AGREE}
        rows.append((len(mine), len(mine & some), len(agreed), len(mine & agreed)))
    return ObjectReport(*np.array(rows, np.int64).reshape(-1, 4).T)


def _share(part: int, whole: int) -> float:
    return 100 * float(part) / float(whole) if whole else 100.0
