from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu

from training.scoring.bleu import BleuCounts, corpus_bleu, sentence_bleu

words = st.sampled_from(["a", "dog", "runs", "the", "red", "ball", "on", "grass"])
sentences = st.lists(words, min_size=1, max_size=12)
references = st.lists(st.lists(sentences, min_size=1, max_size=5), min_size=1, max_size=6)


def bleu(candidate: str, *references: str) -> float:
    return float(sentence_bleu(BleuCounts([[r.split() for r in references]])([candidate.split()], [0]))[0])


@settings(max_examples=200, deadline=None)
@given(references, st.data())
def test_of_a_set_it_equals_pycocoevalcap(references: list[list[list[str]]], data: st.DataObject) -> None:
    candidates = [[*data.draw(st.sampled_from(refs)), *data.draw(st.lists(words, max_size=3))] for refs in references]
    counts = BleuCounts(references)(candidates, range(len(references)))
    truth = {i: [" ".join(r) for r in refs] for i, refs in enumerate(references)}
    theirs, _ = Bleu(4).compute_score(truth, {i: [" ".join(c)] for i, c in enumerate(candidates)}, verbose=0)
    assert corpus_bleu(counts) == pytest.approx(theirs[3], abs=1e-6)


def test_of_a_sentence_by_hand() -> None:
    # Of "a dog runs on grass" 4 of 5 words are in one reference or the other, 2 of 4 pairs, 1 of 3 triples, no four.
    expected = (4 / 5 * (2 + 1) / (4 + 1) * (1 + 1) / (3 + 1) * (0 + 1) / (2 + 1)) ** (1 / 4)
    assert bleu("a dog runs on grass", "a dog runs fast here", "the red ball on it") == pytest.approx(expected)


def test_a_word_counts_as_often_as_one_reference_has_it() -> None:
    once, twice = bleu("a a a a", "a dog", "a ball"), bleu("a a a a", "a dog a ball")
    assert once == pytest.approx((1 / 4 * 1 / 4 * 1 / 3 * 1 / 2) ** (1 / 4))
    assert twice == pytest.approx((2 / 4 * 1 / 4 * 1 / 3 * 1 / 2) ** (1 / 4))


def test_what_is_shorter_than_the_closest_reference_loses() -> None:
    assert bleu("a dog", "a dog runs on") == pytest.approx(math.exp(1 - 4 / 2))
    assert bleu("a dog", "a dog runs on", "a red ball") == pytest.approx(math.exp(1 - 3 / 2))


def test_nothing_right_is_worth_nothing() -> None:
    assert bleu("the grass", "a dog runs") == 0.0
    assert bleu("", "a dog runs") == 0.0


@given(sentences, st.lists(sentences, max_size=3))
def test_a_reference_is_worth_the_whole_and_nothing_more(mine: list[str], others: list[list[str]]) -> None:
    whole, other = sentence_bleu(BleuCounts([[mine, *others], [*others, ["cat"]]])([mine, mine], [0, 1]))
    assert whole == pytest.approx(1.0)
    assert 0.0 <= other <= 1.0 + 1e-9
