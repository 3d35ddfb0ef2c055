"""What a captioner returns: captions made of tokens, and on request why each token was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Alternative:
    """A word, or a piece of one, that the decoder nearly chose."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one token was chosen.

    attention: (rows, columns) weights over the picture's regions, summing to 1 less `sentinel` and `tags`; None where
        the decoder has no attention, and saw the picture but once, before the first word.
    sentinel: the weight given to "no region" by adaptive attention, 0 without it.
    tags: the weight given to the likeliest tags, 0 where the attention does not look at them.
    layers: one mapping for each recurrent layer, bottom first, from quantity to value. For an LSTM:
        the mean activations `forget`, `input`, `output` in (0, 1) and the root mean squares
        `candidate`, `state`, `hidden`. Other cells report the gates they have.
    alternatives: the most probable other tokens, best first ("." is the end of the caption).
    """

    attention: NDArray[np.float32] | None
    sentinel: float
    layers: tuple[Mapping[str, float], ...]
    alternatives: tuple[Alternative, ...]
    tags: float = 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """One decision of the decoder: a word, or "." for the decision to end the caption.

    With a vocabulary of pieces it is a piece of a word, and "##board" goes on with the word before it.
    """

    text: str
    probability: float
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence; `log_probability` is the natural log of the product of its tokens' probabilities.

    support: probability that all things it names are there, by the tags, which were asked about the picture alone;
        None where the checkpoint has no tags, or knows none of the things.
    """

    text: str
    log_probability: float
    tokens: tuple[Token, ...] = field(default=())
    support: float | None = None

    @property
    def confidence(self) -> float:
        """Geometric mean of the tokens' probabilities, in (0, 1]."""
        return math.exp(self.log_probability / max(len(self.tokens), 1))

    @property
    def reliability(self) -> float:
        """What decides whether a person should look at it: its support, or its confidence where it has none."""
        return self.confidence if self.support is None else self.support
