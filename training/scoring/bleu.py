"""BLEU-4 from counts, in plain Python: of single sentences, as a reward, and of any choice among captions.

Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation"; that of a set is
pycocoevalcap's `Bleu` on the same tokens. Finished models are scored by `training.scoring.metrics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Sentence = Sequence[Hashable]  # words, or ids of words

ORDERS = 4  # n-grams of 1 to 4 words


class BleuCounts:
    """Counts what sentences share with the references of numbered pictures; the references are prepared once.

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

    def __call__(self, candidates: Sequence[Sentence], pictures: Sequence[int]) -> NDArray[np.float64]:
        """(N, 6): how many n-grams of 1 to 4 words a reference has too, the length, that of the closest reference."""
        counts = np.zeros((len(candidates), ORDERS + 2))
        for row, candidate, picture in zip(counts, candidates, pictures, strict=True):
            said = len(candidate)
            for gram, count in _ngrams(candidate).items():
                row[len(gram) - 1] += min(count, self._most[picture][gram])
            row[ORDERS:] = said, min(self._lengths[picture], key=lambda length: (abs(length - said), length))
        return counts


def corpus_bleu(counts: NDArray[np.float64]) -> float:
    """BLEU-4 of the sentences with these counts (N, 6) together, 0 to 1."""
    matches, said, closest = counts[:, :ORDERS].sum(0), counts[:, ORDERS], counts[:, ORDERS + 1].sum()
    ngrams = np.array([(said - n).clip(0).sum() for n in range(ORDERS)])
    logs = np.log((matches + 1e-15) / (ngrams + 1e-9))  # pycocoevalcap's way with n-grams of which none is right
    return float(np.exp(logs.mean() + min(0.0, 1 - closest / said.sum())))


def sentence_bleu(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) BLEU-4 of each sentence by itself, 0 to 1.

    Most have no 4-gram right, and would be worth 0 whatever else is: so one is added to matches and n-grams above
    single words (Lin and Och 2004, "ORANGE").
    """
    matches, said, closest = counts[:, :ORDERS], counts[:, ORDERS], counts[:, ORDERS + 1]
    added = np.arange(ORDERS) > 0
    precisions = (matches + added) / ((said[:, None] - np.arange(ORDERS)).clip(0) + added).clip(1)
    shortness = np.minimum(0.0, 1 - closest / said.clip(1))
    scores: NDArray[np.float64] = precisions.prod(1) ** (1 / ORDERS) * np.exp(shortness)
    return scores


def _ngrams(sentence: Sentence) -> Counter[tuple[Hashable, ...]]:
    return Counter(
        tuple(sentence[start : start + n]) for n in range(1, ORDERS + 1) for start in range(len(sentence) - n + 1)
    )
