from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from training.scoring.cider import CiderD

words = st.sampled_from(["a", "dog", "runs", "the", "red", "ball", "on", "grass"])
sentences = st.lists(words, min_size=1, max_size=12)
references = st.lists(st.lists(sentences, min_size=1, max_size=5), min_size=1, max_size=6)


def pycocoevalcap_scores(candidates: list[list[str]], references: list[list[list[str]]]) -> np.ndarray:
    ground_truth = {i: [" ".join(r) for r in refs] for i, refs in enumerate(references)}
    results = {i: [" ".join(c)] for i, c in enumerate(candidates)}
    return np.asarray(Cider().compute_score(ground_truth, results)[1])


@settings(max_examples=200, deadline=None)
@given(references, st.data())
def test_equals_pycocoevalcap(references: list[list[list[str]]], data: st.DataObject) -> None:
    more_words = st.one_of(words, st.sampled_from(["unseen", "also-unseen"]))
    candidates = [data.draw(st.lists(more_words, max_size=15)) for _ in references]
    ours = CiderD(references).score(candidates, range(len(references)))
    np.testing.assert_allclose(ours, pycocoevalcap_scores(candidates, references), atol=1e-9)


def test_ids_score_as_their_words_do() -> None:
    references = [[["a", "dog", "runs"]], [["a", "cat", "sits", "here"], ["the", "cat"]]]
    candidates = [["a", "dog", "sits"], ["the", "cat", "sits"]]
    number = {word: i for i, word in enumerate(["a", "dog", "runs", "cat", "sits", "here", "the"])}
    as_ids = CiderD([[[number[w] for w in s] for s in refs] for refs in references])
    np.testing.assert_allclose(
        as_ids.score([[number[w] for w in c] for c in candidates], [0, 1]),
        CiderD(references).score(candidates, [0, 1]),
    )


def test_a_picture_may_have_many_candidates_and_the_right_sentence_wins() -> None:
    scorer = CiderD([[["a", "dog", "runs", "fast"]], [["a", "cat", "sits", "still"]]])
    right, wrong, empty = scorer.score([["a", "cat", "sits", "still"], ["a", "dog", "runs", "fast"], []], [1, 1, 1])
    assert right == pytest.approx(10.0)
    assert 0.0 <= wrong < 0.1
    assert empty == 0.0


def test_document_frequencies_may_come_from_other_pictures() -> None:
    references = [[["a", "dog"]], [["a", "cat"]]]
    documents = [[["a", "dog"]], [["dog"]], [["dog"]], [["bird"]]]
    own = CiderD(references).score([["dog"]], [0])[0]
    given = CiderD(references, documents).score([["dog"]], [0])[0]
    # "dog" is in one of two references, but in three of four documents: there it says less, beside a rare "a".
    assert 0.0 < given < own


def test_candidates_and_pictures_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 candidates for 1 pictures"):
        CiderD([[["a"]]]).score([["a"], ["b"]], [0])
