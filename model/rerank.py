"""The last stage of a caption: which of the candidates that a search found says best what the picture holds.

A search ranks by the decoder's own probabilities, which like what is usual. Two witnesses are heard beside it: what
people said of similar pictures (`model.neighbours`), and the tags, which were asked about the picture alone.
The tags also say how far a caption is to be believed (`support`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.checkpoint import NEIGHBOURS, Checkpoint
from model.config import RerankConfig
from model.neighbours import Neighbours
from model.search import Hypothesis
from model.vocabulary import Vocabulary


class Reranker:
    """Puts hypotheses in the order that `config` asks for. Thread-safe."""

    def __init__(
        self,
        config: RerankConfig,
        vocabulary: Vocabulary,
        tags: Sequence[str],
        neighbours: Neighbours,
        things: Sequence[str] = (),
    ) -> None:
        self.config, self.neighbours = config, neighbours
        self._places, self._things = tag_places(vocabulary, tags), tag_places(vocabulary, tags, things)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Reranker | None:
        """The checkpoint's own; None for one whose searches rank by themselves."""
        if not checkpoint.config.rerank.size:
            return None
        neighbours = Neighbours.read(checkpoint.verified(NEIGHBOURS))
        config = checkpoint.config
        return cls(config.rerank, checkpoint.vocabulary, config.tags, neighbours, config.things)

    def __call__(
        self, found: Sequence[Hypothesis], feature: NDArray[np.float32], tags: NDArray[np.float32]
    ) -> list[Hypothesis]:
        """One picture's hypotheses, best first. feature: (d,). tags: (G,), probabilities."""
        if len(found) < 2:
            return list(found)
        candidates = [h.words for h in found]
        scores = self.neighbours.consensus(feature, candidates, self.config.neighbours)
        scores += self.config.search * np.array([h.score for h in found], np.float32)
        if self.config.tags:
            scores += self.config.tags * agreement(candidates, self._places, tags)
        if self.config.things:
            scores += self.config.things * log_odds(candidates, self._things, tags)
        return [found[i] for i in np.argsort(-scores, kind="stable").tolist()]


def tag_places(vocabulary: Vocabulary, tags: Sequence[str], some: Sequence[str] | None = None) -> NDArray[np.int64]:
    """(V,): for each token the place of its word among the tags, -1 for none. some: only these of the tags count."""
    place = {word: i for i, word in enumerate(tags) if some is None or word in some}
    return np.array([place.get(word, -1) for word in vocabulary.words])


def thing_places(checkpoint: Checkpoint) -> NDArray[np.int64] | None:
    """`tag_places` of the checkpoint's things; None for one that knows of none."""
    config = checkpoint.config
    return tag_places(checkpoint.vocabulary, config.tags, config.things) if config.things else None


def said(candidates: Sequence[Sequence[int]], places: NDArray[np.int64], tags: int) -> NDArray[np.float32]:
    """(C, tags): 1 for each tag that a candidate's token ids name, however often, else 0. places: (V,)."""
    row = np.repeat(np.arange(len(candidates)), [len(words) for words in candidates])
    words = np.fromiter(itertools.chain.from_iterable(candidates), np.int64, len(row))
    named = np.zeros((len(candidates), tags + 1), np.float32)  # the last: words that are none of them
    named[row, places[words]] = 1
    return named[:, :-1]


def log_odds(
    candidates: Sequence[Sequence[int]], places: NDArray[np.int64], tags: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(C,): the sum of the log-odds of the distinct tags that each candidate names. tags: (G,), probabilities."""
    return _sums(said(candidates, places, len(tags)), tags)


def agreement(
    candidates: Sequence[Sequence[int]], places: NDArray[np.int64], tags: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(C,): the mean of the log-odds of the distinct tags that each candidate names, 0 where there is none."""
    named = said(candidates, places, len(tags))
    mean: NDArray[np.float32] = _sums(named, tags) / named.sum(1).clip(1)
    return mean


def _sums(named: NDArray[np.float32], tags: NDArray[np.float32]) -> NDArray[np.float32]:
    p = _certain(tags)
    sums: NDArray[np.float32] = np.vecdot(named, np.log(p / (1 - p)))
    return sums


def _certain(tags: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities with finite log-odds."""
    return tags.clip(1e-4, 1 - 1e-4)


def support(words: Sequence[int], places: NDArray[np.int64], tags: NDArray[np.float32]) -> float | None:
    """Probability that all things a caption names are there, as if they came one by one; None where it names none.

    words: its token ids. places: (V,), of the things alone. tags: (G,), probabilities.
    """
    p = _certain(tags)[said([words], places, len(tags))[0] > 0]
    return float(p.prod()) if len(p) else None
