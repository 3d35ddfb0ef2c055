"""From found hypotheses to captions: the same for both engines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.caption import Alternative, Caption, Explanation, Token
from model.search import Hypothesis
from model.vocabulary import END, PAD, START, Vocabulary, sentence

ALTERNATIVES = 4  # runner-up words an explanation names


class StepDetails(NamedTuple):
    """What the decoder saw at each step of N captions of B pictures.

    log_probabilities: (B, N, T, V). attention: (B, N, T, L + M + 1): of L regions, of M tags, of the sentinel; None
    without attention.
    gates: (B, N, T, layers, G).
    """

    log_probabilities: NDArray[np.float32]
    attention: NDArray[np.float32] | None
    gates: NDArray[np.float32]


def forced_words(found: Sequence[Sequence[Hypothesis]]) -> NDArray[np.int64]:
    """The hypotheses as decoder inputs (B, N, T): start word first, padded, without their last word."""
    N = max(len(mine) for mine in found)
    T = max(len(h.words) for mine in found for h in mine)
    words = np.full((len(found), N, T), PAD, np.int64)
    words[:, :, 0] = START
    for b, mine in enumerate(found):
        for n, hypothesis in enumerate(mine):
            words[b, n, 1 : len(hypothesis.words)] = hypothesis.words[:-1]
    return words


def captions_of(
    found: Sequence[Sequence[Hypothesis]],
    vocabulary: Vocabulary,
    gate_names: Sequence[str],
    grid: tuple[int, int],
    details: StepDetails | None,
) -> list[list[Caption]]:
    """Hypotheses -> captions; with `details`, each token carries its explanation."""
    captions: list[list[Caption]] = []
    for b, mine in enumerate(found):
        made = []
        for n, hypothesis in enumerate(mine):
            tokens = tuple(
                Token(
                    _text(word, vocabulary),
                    math.exp(log_probability),
                    _explanation(details, (b, n, t), word, vocabulary, gate_names, grid) if details else None,
                )
                for t, (word, log_probability) in enumerate(
                    zip(hypothesis.words, hypothesis.log_probabilities, strict=True)
                )
            )
            made.append(
                Caption(
                    sentence(vocabulary.written(hypothesis.words)),
                    hypothesis.log_probability,
                    tokens,
                    hypothesis.support,
                )
            )
        captions.append(made)
    return captions


def _text(word: int, vocabulary: Vocabulary) -> str:
    return "." if word == END else vocabulary.words[word]


def _explanation(
    details: StepDetails,
    place: tuple[int, int, int],
    word: int,
    vocabulary: Vocabulary,
    gate_names: Sequence[str],
    grid: tuple[int, int],
) -> Explanation:
    log_probabilities, gates = details.log_probabilities[place], details.gates[place]
    attention = None if details.attention is None else details.attention[place]
    regions = grid[0] * grid[1]
    best = _best(log_probabilities, ALTERNATIVES + 1)
    return Explanation(
        attention=None if attention is None else attention[:regions].reshape(grid),
        sentinel=0.0 if attention is None else float(attention[-1]),
        layers=tuple(dict(zip(gate_names, map(float, layer), strict=True)) for layer in gates),
        alternatives=tuple(
            Alternative(_text(int(i), vocabulary), math.exp(log_probabilities[i])) for i in best if i != word
        )[:ALTERNATIVES],
        tags=0.0 if attention is None else float(attention[regions:-1].sum()),
    )


def _best(log_probabilities: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The `count` likeliest, likeliest first, the first of equal ones; to sort them all takes ten times as long."""
    least = np.partition(log_probabilities, -min(count, len(log_probabilities)))[-min(count, len(log_probabilities))]
    among = np.flatnonzero(log_probabilities >= least)
    return among[np.argsort(-log_probabilities[among], kind="stable")][:count]
