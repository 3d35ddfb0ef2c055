from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import RECIPES
from training.scoring.failures import KINDS, Failure, guess, read_judgements, tally, verbs_of

DOG = [["a", "brown", "dog", "runs", "on", "grass"], ["the", "dog", "is", "running", "outside"]]
CYCLISTS = [["two", "men", "riding", "bikes"], ["men", "ride", "bicycles", "in", "red", "and", "grey", "shirts"]]
VERBS = verbs_of([["jumping", "running", "riding", "building"]])


@pytest.mark.parametrize(
    ("caption", "references", "kinds", "evidence"),
    [
        ("a man runs on grass", DOG, ["wrong object"], "no reference has “man”"),
        ("a man in a hat", DOG, ["wrong object", "hallucination"], "no reference has “man”"),
        ("the dog swims", DOG, ["hallucination"], "no reference has “swims”"),  # it is no known verb
        ("the dog jumps", DOG, ["wrong action"], "no reference has “jumps”"),
        ("a dog is swimming on grass", DOG, ["wrong action"], "no reference has “swimming”"),
        ("two dogs run", DOG, ["wrong count"], "“dogs”, references: “dog”"),
        ("a man rides bikes", CYCLISTS, ["wrong count"], "“man”, references: “men”"),
        ("three men ride bikes", CYCLISTS, ["wrong count"], "3, references: 2"),
        ("a black dog on grass", DOG, ["wrong colour"], "“black”, references: brown"),
        ("men in gray shirts", CYCLISTS, ["other wording"], "every word is in some reference"),
        ("a dog on grass near a white building", DOG, ["wrong colour", "hallucination"], "“white”, references: brown"),
        ("a dog with a ball and a frisbee", DOG, ["hallucination"], "no reference has “ball”, “frisbee”"),
        ("the dog outside on grass", DOG, ["other wording"], "every word is in some reference"),
        ("", DOG, ["other wording"], "every word is in some reference"),
    ],
)
def test_guess(caption: str, references: list[list[str]], kinds: list[str], evidence: str) -> None:
    found = guess(caption.split(), references, VERBS)
    assert [failure.kind for failure in found] == kinds
    assert found[0].evidence == evidence
    assert not any(failure.judged for failure in found)


@given(st.lists(st.text("abdeginrs", min_size=1, max_size=8), min_size=1, max_size=10))
def test_a_reference_itself_is_never_wrong(words: list[str]) -> None:
    assert [failure.kind for failure in guess(words, [words, ["other"]], VERBS)] == ["other wording"]


def test_tally_counts_the_gravest_kind() -> None:
    found = [guess(text.split(), DOG, VERBS) for text in ("a man in a hat", "a black dog", "a red dog", "a dog")]
    counts = tally(found)
    assert tuple(counts) == KINDS
    assert {kind: n for kind, n in counts.items() if n} == {"wrong object": 1, "wrong colour": 2, "other wording": 1}


def test_the_judgements_that_ship_are_of_twenty_pictures_and_counted_as_the_docs_say() -> None:
    judged = read_judgements(RECIPES.parent / "judgements" / "everyday.json")
    assert len(judged) == 20
    counts = {kind: count for kind, count in tally([[failure] for failure in judged.values()]).items() if count}
    text = " ".join((RECIPES.parents[1] / "docs" / "training.md").read_text(encoding="utf-8").split())
    stated = {
        "wrong object": r"(\d+) name a wrong object",
        "wrong action": r"(\d+) a wrong action",
        "wrong count": r"(\d+) a wrong number",
        "hallucination": r"(\d+) something that is not there",
        "other wording": r"(\d+) are true but say little",
    }
    for kind, pattern in stated.items():
        [count] = re.findall(pattern, text)
        assert counts.pop(kind) == int(count), kind
    assert counts == {}
    assert all(failure.evidence for failure in judged.values())


def test_judgements_are_read(tmp_path: Path) -> None:
    file = tmp_path / "judged.json"
    file.write_text(json.dumps({"a.jpg": ["wrong count", "three dogs"]}))
    assert read_judgements(file) == {"a.jpg": Failure("wrong count", "three dogs", judged=True)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{", "expected a JSON object"),
        ('{"a.jpg": "bad"}', "expected a JSON object"),
        ('{"a.jpg": ["bad", "note"]}', r"'bad', of a\.jpg, is none of: wrong object"),
    ],
)
def test_malformed_judgements_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "judged.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_judgements(file)
