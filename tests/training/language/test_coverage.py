from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from model.vocabulary import SPECIAL, Vocabulary
from tests.training.tiny import CPU, recipe, shapes
from training.data import DataError
from training.language.coverage import check, coverage
from training.language.pieces import build_pieces
from training.loop import train

CHINESE = ["一只黑狗在草地上跑", "一只白狗在雪地上跑", "一个男孩在踢球"]


def test_unknown_words_are_counted_and_named() -> None:
    found = coverage(Vocabulary((*SPECIAL, "a", "dog")), ["a dog runs", "A cat", "a dog runs"])
    assert (found.words, found.tokens, found.mean_length, found.longest) == (2, 8, 8 / 3, 3)
    assert found.unknown == 3 / 8
    assert found.examples == ("runs", "cat")
    assert found.repeating == {2: 0, 3: 0, 4: 0}
    assert coverage(Vocabulary((*SPECIAL, "a", "b")), ["a b a b", "a b"]).repeating == {2: 0.5, 3: 0, 4: 0}


def test_warnings_say_what_to_do() -> None:
    few = check(Vocabulary((*SPECIAL, "a", "dog")), ["a dog runs", "a cat"])
    assert [warning.split(":")[1] for warning in few] == [
        ' lower min_count, or set vocabulary = "pieces"',
        " lower min_count, or bring more captions",
    ]
    assert "40% of the captions' words are unknown (such as runs, cat)" in few[0]
    assert "only 2 words" in few[1]
    known = [f"word{i}" for i in range(30)]
    assert check(Vocabulary((*SPECIAL, *known)), [" ".join(known)], 2) == []


def test_captions_that_blocking_would_forbid_are_told() -> None:
    """Characters repeat as words do not."""
    captions = ["一个男孩和一个女孩"] * 3
    vocabulary = Vocabulary.build(captions, 1)
    assert "100% of the captions say some 2 tokens twice" in check(vocabulary, captions, 2)[-1]
    assert len(check(vocabulary, captions, 3)) == len(check(vocabulary, captions)) == 1


def test_a_chinese_set_is_known_by_its_characters_or_pieces() -> None:
    assert coverage(Vocabulary.build(CHINESE, 1), CHINESE).unknown == 0
    assert coverage(build_pieces(CHINESE * 5, 60, 1), CHINESE).unknown == 0


@pytest.mark.parametrize("min_count", [5, 1000])
def test_a_vocabulary_too_small_to_be_meant_is_refused(min_count: int) -> None:
    captions = ["one two", "three four", "five six", "the the the the the"]
    with pytest.raises(DataError, match=r"does not know 55%|nothing to learn"):
        check(Vocabulary.build(captions, min_count), captions)
    with pytest.raises(DataError, match="nothing to learn"):
        check(Vocabulary.build(captions, 1), ["..."])


def test_it_is_told_before_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = shapes(tmp_path)
    with pytest.raises(DataError, match="nothing to learn: lower min_count"):
        train(replace(recipe(), min_count=10_000), data, tmp_path / "run", tmp_path / "cache", CPU)
    assert not (tmp_path / "cache").exists()
    with caplog.at_level(logging.WARNING):
        train(recipe(epochs=1), data, tmp_path / "run", tmp_path / "cache", CPU)
    assert "the vocabulary has only" in caplog.text
