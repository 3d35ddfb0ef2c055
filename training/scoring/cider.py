"""CIDEr in plain Python, fast enough to be a reward: equal to pycocoevalcap's `Cider` on the same tokens.

Vedantam, Zitnick and Parikh, 2015, "CIDEr: Consensus-based Image Description Evaluation". What
pycocoevalcap calls CIDEr is the paper's CIDEr-D: counts are clipped, and a Gaussian punishes a
length unlike the reference's. Needs no Java: callers bring tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sentence = Sequence[Hashable]  # words, or ids of words

ORDERS = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # words of difference in length at which the Gaussian has its deviation
_ID_BITS = 21  # an n-gram is one integer, its words' ids side by side: faster than a tuple, and exact


@dataclass(frozen=True, slots=True)
class _Vector:
    """A sentence as tf-idf weights."""

    weights: tuple[dict[int, float], ...]  # for each order: n-gram -> count * idf
    norms: tuple[float, ...]  # for each order
    length: int  # bigrams, as in the original


class CiderD:
    """Scores sentences against the references of numbered pictures; the references are prepared once.

    references: for each picture its reference sentences, at least one each.
    documents: sentences of the pictures that document frequencies come from; the references themselves
        where not given, as in pycocoevalcap. For self-critical training both are the training set's.
    """

    def __init__(
        self, references: Sequence[Sequence[Sentence]], documents: Sequence[Sequence[Sentence]] | None = None
    ) -> None:
        self._ids: dict[Hashable, int] = {}
        documents = references if documents is None else documents
        frequency: Counter[int] = Counter()
        for sentences in documents:
            # Each picture counts once, however many of its sentences have the n-gram.
            frequency.update({gram for s in sentences for counts in self._count(s) for gram in counts})
        self._unseen = math.log(len(documents)) if documents else 0.0
        self._idf = {gram: self._unseen - math.log(count) for gram, count in frequency.items()}
        self._references = [[self._vector(sentence) for sentence in sentences] for sentences in references]

    def score(self, candidates: Sequence[Sentence], pictures: Sequence[int]) -> NDArray[np.float64]:
        """(N,) CIDEr-D of each candidate against the references of its picture, 0 to 10 (papers print it x 100)."""
        if len(candidates) != len(pictures):
            raise ValueError(f"{len(candidates)} candidates for {len(pictures)} pictures")
        scores = [
            self._similarity(self._vector(candidate), self._references[picture])
            for candidate, picture in zip(candidates, pictures, strict=True)
        ]
        return np.asarray(scores, np.float64)

    def _count(self, sentence: Sentence) -> tuple[dict[int, int], ...]:
        """For each order: n-gram -> how often it occurs."""
        ids = [self._ids.setdefault(word, len(self._ids) + 1) for word in sentence]
        found: tuple[dict[int, int], ...] = tuple({} for _ in range(ORDERS))
        for start in range(len(ids)):
            gram = 0
            for counts, word in zip(found, ids[start : start + ORDERS], strict=False):
                gram = gram << _ID_BITS | word
                counts[gram] = counts.get(gram, 0) + 1
        return found

    def _vector(self, sentence: Sentence) -> _Vector:
        idf, unseen = self._idf, self._unseen
        weights = tuple(
            {gram: count * idf.get(gram, unseen) for gram, count in counts.items()} for counts in self._count(sentence)
        )
        norms = tuple(math.sqrt(sum(w * w for w in order.values())) for order in weights)
        return _Vector(weights, norms, max(len(sentence) - 1, 0))

    def _similarity(self, candidate: _Vector, references: Sequence[_Vector]) -> float:
        total = 0.0
        for reference in references:
            cosines = 0.0
            for mine, theirs, my_norm, their_norm in zip(
                candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
            ):
                if my_norm and their_norm:
                    # Clipped: saying a word more often than the reference does earns nothing.
                    dot = sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in mine.keys() & theirs.keys())
                    cosines += dot / (my_norm * their_norm)
            total += cosines * math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
        return 10.0 * total / ORDERS / len(references)
