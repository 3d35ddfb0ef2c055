from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.runtime import results
from model.runtime.results import ALTERNATIVES, StepDetails, captions_of, forced_words
from model.search import Hypothesis
from model.vocabulary import END, PAD, SPECIAL, START, Vocabulary

VOCABULARY = Vocabulary((*SPECIAL, "a", "dog", "runs", "sits", "cat", "ball"))
A, DOG, RUNS, CAT = 4, 5, 6, 8
FOUND = [
    [Hypothesis((A, DOG, RUNS, END), (-0.1, -0.2, -0.3, -0.4), -0.5), Hypothesis((DOG, END), (-1.0, -2.0), -2.0)],
    [Hypothesis((A, CAT, END), (-0.5, -0.25, -0.125), -0.4)],
]


def details(log_probabilities: np.ndarray | None = None) -> StepDetails:
    """Two pictures, two captions, four steps, a grid of 2 x 3 regions and two gates of each layer."""
    rng = np.random.default_rng(0)
    if log_probabilities is None:
        log_probabilities = np.log(rng.dirichlet(np.ones(len(VOCABULARY)), (2, 2, 4)))
    attention = rng.dirichlet(np.ones(7), (2, 2, 4))
    gates = rng.random((2, 2, 4, 2, 2))
    return StepDetails(*(part.astype(np.float32) for part in (log_probabilities, attention, gates)))


def test_captions_become_inputs_of_the_decoder() -> None:
    expected = [
        [[START, A, DOG, RUNS], [START, DOG, PAD, PAD]],
        [[START, A, CAT, PAD], [START, PAD, PAD, PAD]],
    ]
    assert forced_words(FOUND).tolist() == expected


def test_text_probabilities_and_confidence() -> None:
    first, second = captions_of(FOUND, VOCABULARY, (), (2, 3), None)
    assert [caption.text for caption in first] == ["A dog runs.", "Dog."]
    assert [token.text for token in first[0].tokens] == ["a", "dog", "runs", "."]
    assert [token.probability for token in second[0].tokens] == pytest.approx(np.exp([-0.5, -0.25, -0.125]))
    assert first[0].log_probability == pytest.approx(-1.0)
    assert first[0].confidence == pytest.approx(math.exp(-0.25))
    assert all(token.explanation is None for caption in first for token in caption.tokens)


def test_explanations_belong_to_their_token() -> None:
    seen = details()
    assert seen.attention is not None
    captions = captions_of(FOUND, VOCABULARY, ("input", "hidden"), (2, 3), seen)
    for b, mine in enumerate(captions):
        for n, caption in enumerate(mine):
            for t, token in enumerate(caption.tokens):
                why = token.explanation
                assert why is not None
                np.testing.assert_array_equal(why.attention, seen.attention[b, n, t, :6].reshape(2, 3))
                assert why.sentinel == pytest.approx(seen.attention[b, n, t, 6])
                assert why.layers == tuple(
                    {"input": pytest.approx(layer[0]), "hidden": pytest.approx(layer[1])}
                    for layer in seen.gates[b, n, t]
                )


def test_what_tags_and_the_sentence_had_is_apart_from_the_regions() -> None:
    """Of two by two regions, two tags and the sentinel."""
    seen = details()
    assert seen.attention is not None
    for b, mine in enumerate(captions_of(FOUND, VOCABULARY, ("input", "hidden"), (2, 2), seen)):
        for n, caption in enumerate(mine):
            for t, token in enumerate(caption.tokens):
                why, weights = token.explanation, seen.attention[b, n, t]
                assert why is not None
                np.testing.assert_array_equal(why.attention, weights[:4].reshape(2, 2))
                assert why.tags == pytest.approx(weights[4:6].sum())
                assert why.sentinel == pytest.approx(weights[6])


def test_without_attention_everything_else_is_explained() -> None:
    captions = captions_of(FOUND, VOCABULARY, ("input", "hidden"), (2, 3), details()._replace(attention=None))
    with_it = captions_of(FOUND, VOCABULARY, ("input", "hidden"), (2, 3), details())
    for caption, other in zip(captions[0], with_it[0], strict=True):
        for token, same in zip(caption.tokens, other.tokens, strict=True):
            assert same.explanation is not None
            assert token.explanation == replace(same.explanation, attention=None, sentinel=0.0)


def test_alternatives_are_the_likeliest_other_words() -> None:
    log_probabilities = np.full((2, 2, 4, len(VOCABULARY)), -1e4)
    log_probabilities[..., [A, DOG, RUNS, CAT, END, 9]] = np.log([0.05, 0.4, 0.2, 0.15, 0.1, 0.1])
    captions = captions_of(FOUND, VOCABULARY, ("input", "hidden"), (2, 3), details(log_probabilities))
    dog = captions[0][0].tokens[1].explanation  # the likeliest word was said
    a = captions[0][0].tokens[0].explanation  # the least likely was
    assert dog is not None
    assert a is not None
    assert [other.text for other in dog.alternatives] == ["runs", "cat", ".", "ball"]
    assert [other.text for other in a.alternatives] == ["dog", "runs", "cat", "."]
    assert [other.probability for other in a.alternatives] == pytest.approx([0.4, 0.2, 0.15, 0.1])
    assert len(a.alternatives) == ALTERNATIVES


def test_the_likeliest_of_many_words_are_found_without_sorting_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sort, sorted_at_once = np.argsort, []

    def argsort(values: np.ndarray, **given: Any) -> np.ndarray:
        sorted_at_once.append(len(values))
        return sort(values, **given)

    monkeypatch.setattr(np, "argsort", argsort)
    rng = np.random.default_rng(0)
    for row in (rng.normal(size=9000), rng.integers(0, 3000, 9000), rng.normal(size=3)):
        values = row.astype(np.float32)
        expected = sort(-values, kind="stable")[:5]
        np.testing.assert_array_equal(results._best(values, 5), expected)  # also which of equal ones
    assert max(sorted_at_once) < 50
