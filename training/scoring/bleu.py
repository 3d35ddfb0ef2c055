"""BLEU-4 of single sentences, in plain Python, fast enough to be a reward.

Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation". A whole set is scored by
pycocoevalcap (`training.scoring.metrics`); of one sentence most have no 4-gram right, and BLEU would be 0 whatever else
is: so one is added to matches and n-grams above single words (Lin and Och 2004, "ORANGE").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Sentence = Sequence[Hashable]  # words, or ids of words

ORDERS = 4  # n-grams of 1 to 4 words


class SentenceBleu:
    """Scores sentences against the references of numbered pictures; the references are prepared once.

    references: for each picture its reference sentences, at least one each.
    """

    def __init__(self, references: Sequence[Sequence[Sentence]]) -> None:
        self._most: list[Counter[tuple[Hashable, ...]]] = []  # how often one reference of the picture has an n-gram
        self._lengths = [sorted({len(sentence) for sentence in sentences}) for sentences in references]
        for sentences in references:
            most: Counter[tuple[Hashable, ...]] = Counter()
            for sentence in sentences:
                most |= _ngrams(sentence)
            self._most.append(most)

    def score(self, candidates: Sequence[Sentence], pictures: Sequence[int]) -> NDArray[np.float64]:
        """(N,) BLEU-4 of each candidate against the references of its picture, 0 to 1."""
        return np.array([self._score(*pair) for pair in zip(candidates, pictures, strict=True)], np.float64)

    def _score(self, candidate: Sentence, picture: int) -> float:
        most, matches = self._most[picture], [0] * ORDERS
        for gram, count in _ngrams(candidate).items():
            matches[len(gram) - 1] += min(count, most[gram])
        if not matches[0]:
            return 0.0
        said = len(candidate)
        logs = math.log(matches[0] / said)
        logs += sum(math.log((matches[n] + 1) / (max(said - n, 0) + 1)) for n in range(1, ORDERS))
        closest = min(self._lengths[picture], key=lambda length: (abs(length - said), length))
        return math.exp(logs / ORDERS + min(0.0, 1 - closest / said))


def _ngrams(sentence: Sentence) -> Counter[tuple[Hashable, ...]]:
    return Counter(
        tuple(sentence[start : start + n]) for n in range(1, ORDERS + 1) for start in range(len(sentence) - n + 1)
    )
