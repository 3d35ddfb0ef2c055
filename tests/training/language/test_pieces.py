from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.vocabulary import CONTINUES, END, SPECIAL, UNKNOWN, words_of
from tests.training.tiny import CPU, recipe, shapes
from training import loop as training
from training import objectives
from training.language.pieces import build_pieces
from training.scoring.cider import CiderD

CAPTIONS = [
    "A skateboarder rides his skateboard", "the man's T-shirt", "a snowboarder and a surfboard", "boys ride boards",
]  # fmt: skip
letters = st.text("abcdé", min_size=1, max_size=6)


def merged_slowly(words: Counter[str], count: int) -> list[str]:
    """Byte-pair encoding by its definition: all pairs counted anew for each merge."""
    cut = {word: [word[0], *(CONTINUES + x for x in word[1:])] for word in words}
    made: list[str] = []
    while len(made) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in cut.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        joined = best[0] + best[1].removeprefix(CONTINUES)
        made += [joined] if joined not in made else []
        for pieces in cut.values():
            for i in range(len(pieces) - 1, 0, -1):  # ties of overlapping pairs do not arise: words have no triples
                if (pieces[i - 1], pieces[i]) == best:
                    pieces[i - 1 : i + 1] = [joined]
    return made


@given(
    st.lists(letters.filter(lambda w: all(a != b for a, b in pairwise(w))), min_size=1),
    st.integers(0, 30),
)
def test_the_commonest_pairs_are_merged_first(some: list[str], count: int) -> None:
    alphabet = {x for word in some for x in (word[0], *(CONTINUES + y for y in word[1:]))}
    learnt = build_pieces([" ".join(some)], len(alphabet) + count, min_count=1).words[len(SPECIAL) :]
    assert set(learnt[: len(alphabet)]) == alphabet
    assert list(learnt[len(alphabet) :]) == merged_slowly(Counter(some), count)


@pytest.mark.parametrize("size", [40, 60, 200])
@pytest.mark.parametrize("caption", [*CAPTIONS, "a boarder's skate"])  # the last is made of letters seen elsewhere
def test_captions_come_back_whole(size: int, caption: str) -> None:
    vocabulary = build_pieces(CAPTIONS, size, min_count=1)
    assert vocabulary.in_pieces
    assert len(vocabulary) <= size + len(SPECIAL)
    ids = vocabulary.encode(caption)
    assert UNKNOWN not in ids
    assert vocabulary.decode(ids) == words_of(caption)


def test_pieces_grow_into_the_words_of_a_script_without_spaces() -> None:
    vocabulary = build_pieces(["红色的圆形", "红色的方形", "蓝色的圆形", "สีแดง สีน้ำเงิน"] * 2, 40, min_count=2)
    assert {"红色的", "##圆形"} & set(vocabulary.words)
    for caption in ("蓝色的方形", "สีน้ำเงิน"):
        ids = vocabulary.encode(caption)
        assert UNKNOWN not in ids
        assert len(ids) < len(words_of(caption))
        assert vocabulary.decode(ids) == words_of(caption)


def test_more_pieces_make_captions_shorter_down_to_their_words() -> None:
    lengths = [[len(build_pieces(CAPTIONS, size, 1).encode(c)) for c in CAPTIONS] for size in (40, 60, 10_000)]
    assert lengths[0] > lengths[1] > lengths[2] == [len(words_of(c)) for c in CAPTIONS]


def test_words_of_rare_letters_are_unknown() -> None:
    vocabulary = build_pieces(["a cab a cab", "a éclair"], 50, min_count=2)
    assert vocabulary.encode("a éclair") == [*vocabulary.encode("a"), UNKNOWN]


def test_scores_count_words_not_pieces() -> None:
    vocabulary = build_pieces(CAPTIONS, 40, min_count=1)
    ids = [*vocabulary.encode("a surfboard"), END]
    assert len(ids) > 3
    assert vocabulary.counted(ids) == ["a", "surfboard", "<end>"]
    assert vocabulary.counted(ids[:-1]) == ["a", "surfboard"]


def test_the_reward_of_self_critical_training_is_of_whole_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    class Watched(CiderD):
        def _count(self, sentence):  # type: ignore[no-untyped-def]
            seen.extend(sentence)
            return super()._count(sentence)

    monkeypatch.setattr(objectives, "CiderD", Watched)
    data = shapes(tmp_path)
    of = replace(recipe(objective="cider", epochs=1, samples=2), vocabulary="pieces", pieces=30)
    training.train(of, data, tmp_path / "run", tmp_path / "cache", CPU, None)
    words = {word for picture in data.split("train") for c in picture.captions for word in words_of(c)}
    assert words | {"<end>"} <= set(seen)  # the references; samples are of any pieces
    assert not any(str(word).startswith(CONTINUES) for word in seen)
