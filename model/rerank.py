"""The last stage of a caption: which of the candidates that a search found says best what the picture holds.

A search ranks by the decoder's own probabilities, which like what is usual. Two witnesses are heard beside it: what
people said of similar pictures (`model.neighbours`), and the tags, which were asked about the picture alone.
"""

from __future__ import annotations

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
        self, config: RerankConfig, vocabulary: Vocabulary, tags: Sequence[str], neighbours: Neighbours
    ) -> None:
        self.config, self.neighbours = config, neighbours
        self._places = tag_places(vocabulary, tags)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Reranker | None:
        """The checkpoint's own; None for one whose searches rank by themselves."""
        if not checkpoint.config.rerank.size:
            return None
        neighbours = Neighbours.read(checkpoint.verified(NEIGHBOURS))
        return cls(checkpoint.config.rerank, checkpoint.vocabulary, checkpoint.config.tags, neighbours)

    def __call__(
        self, found: Sequence[Hypothesis], feature: NDArray[np.float32], tags: NDArray[np.float32]
    ) -> list[Hypothesis]:
        """One picture's hypotheses, best first. feature: (d,). tags: (G,), probabilities."""
        if len(found) < 2:
            return list(found)
        scores = self.neighbours.consensus(feature, [h.words for h in found], self.config.neighbours)
        scores += self.config.search * np.array([h.score for h in found], np.float32)
        if self.config.tags:
            scores += self.config.tags * np.array([agreement(h.words, self._places, tags) for h in found], np.float32)
        return [found[i] for i in np.argsort(-scores, kind="stable").tolist()]


def tag_places(vocabulary: Vocabulary, tags: Sequence[str]) -> NDArray[np.int64]:
    """(V,): for each token the place of its word among the tags, -1 for none."""
    place = {word: i for i, word in enumerate(tags)}
    return np.array([place.get(word, -1) for word in vocabulary.words])


def agreement(words: Sequence[int], places: NDArray[np.int64], tags: NDArray[np.float32]) -> float:
    """Mean log-odds of the tags among a caption's token ids; 0 where there is none. tags: (G,), probabilities."""
    said = places[list(set(words))]
    p = tags[said[said >= 0]].clip(1e-4, 1 - 1e-4)
    return float(np.log(p / (1 - p)).mean()) if len(p) else 0.0
