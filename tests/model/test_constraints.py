"""Searches that must say some words and must not say others, against brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import SearchConfig
from model.constraints import FREE, Constraints
from model.errors import ConfigError
from model.runtime import load_engine
from model.runtime.engine import CaptionEngine
from model.runtime.openvino_engine import OpenVINOEngine, OpenVINOStepper
from model.search import beam_search, find_hypotheses
from model.vocabulary import END, SPECIAL, Vocabulary
from tests.model.test_search import Model, Words, any_beam, seeds  # noqa: F401
from tests.model.tiny import VOCABULARY, pictures
from tests.training.shapes import draw_pair

EMBEDDED = Path(__file__).parents[2] / "model" / "weights" / "default"
FIRST = len(SPECIAL)  # the first id of a word


def may_follow(said: Words, word: int, config: SearchConfig, constraints: Constraints) -> bool:
    """Whether a caption may go on so: the rules, one word at a time."""
    t, whole = len(said), (*said, word)
    if t < len(constraints.start):
        return word == constraints.start[t]
    if word == END:
        return t >= max(config.min_length, 1)
    if t == config.max_length or any(whole[-len(ids) :] == ids for ids in constraints.avoid):
        return False
    if t == len(constraints.start) and word in constraints.no_continuing:
        return False
    n = config.block_ngram
    grams = [whole[i : i + n] for i in range(t + 2 - n)]
    return not n or t < n or grams[-1] not in grams[:-1]


def every_caption(words: int, config: SearchConfig, constraints: Constraints) -> Iterator[Words]:
    """All that may be said, by brute force."""
    known = range(FIRST, FIRST + words)
    for length in range(1, config.max_length + 1):
        for said in itertools.product(known, repeat=length):
            whole = (*said, END)
            if all(may_follow(whole[:t], whole[t], config, constraints) for t in range(len(whole))):
                yield whole


@st.composite
def cases(draw: st.DrawFn, words: int = 4, max_length: int = 4) -> tuple[SearchConfig, Constraints]:
    """A search and words to keep to, which some caption can."""
    word = st.integers(FIRST, FIRST + words - 1)
    start = tuple(draw(st.lists(word, max_size=3)))
    avoid = [tuple(ids) for ids in draw(st.lists(st.lists(word, min_size=1, max_size=3), max_size=3))]
    avoid = [ids for ids in avoid if not any(start[i : i + len(ids)] == ids for i in range(len(start)))]
    no_continuing = tuple(draw(st.lists(word, max_size=2))) if start else ()
    config = SearchConfig(
        max_length=max_length,
        min_length=draw(st.integers(0, max_length)),
        length_penalty=0.0,
        block_ngram=draw(st.sampled_from([0, 2, 3])),
    )
    return config, Constraints(start, tuple(avoid), no_continuing)


@pytest.mark.usefixtures("any_beam")
@pytest.mark.parametrize("like", ["numpy", "torch"])
def test_a_wide_beam_finds_all_that_may_be_said_in_its_order(like: str) -> None:
    @settings(max_examples=30, deadline=None)
    @given(cases(), seeds)
    def check(case: tuple[SearchConfig, Constraints], seed: int) -> None:
        config, constraints = case
        model = replace(Model.random(2, 4, seed), like=like)
        wide = replace(config, beam_size=400, num_captions=400)
        captions = list(every_caption(4, config, constraints))
        for picture, found in enumerate(beam_search(model, wide, constraints)):
            expected = sorted(captions, key=lambda said: -sum(model.of(said, picture)))
            assert [h.words for h in found] == expected
            for hypothesis in found:  # forced words too have the probability that the model gives them
                assert hypothesis.log_probabilities == pytest.approx(model.of(hypothesis.words, picture), abs=1e-9)

    check()


@settings(max_examples=30, deadline=None)
@given(cases(6, 8), st.integers(1, 5), st.sampled_from(["beam", "sample"]), seeds)
def test_every_search_keeps_to_them_numpy_as_torch_a_batch_as_each_alone(
    case: tuple[SearchConfig, Constraints], num_captions: int, strategy: str, seed: int
) -> None:
    config, constraints = case
    config = replace(config, strategy=strategy, num_captions=num_captions, length_penalty=0.7, seed=seed)  # type: ignore[arg-type]
    model = Model.random(4, 6, seed)
    together = find_hypotheses(model, config, constraints)
    if strategy == "beam":
        theirs = find_hypotheses(replace(model, like="torch"), config, constraints)
        assert [[h.words for h in found] for found in theirs] == [[h.words for h in found] for found in together]
    for picture, found in enumerate(together):
        [alone] = find_hypotheses(model.alone(picture), config, constraints)
        assert [h[:2] for h in map(astuple, alone)] == [h[:2] for h in map(astuple, found)]  # scores: to a last digit
        for hypothesis in found:
            said = hypothesis.words
            assert all(may_follow(said[:t], said[t], config, constraints) for t in range(len(said)))
            assert hypothesis.log_probabilities == pytest.approx(model.of(said, picture))


def test_words_without_their_tokens_are_a_mistake() -> None:
    for config in (SearchConfig(avoid=("dog",)), SearchConfig(start_with="a dog")):
        with pytest.raises(ValueError, match="tokens"):
            find_hypotheses(Model.random(1, 3, 0), config)


# --- from words to tokens -------------------------------------------------------------------------


def ids(*words: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.words.index(word) for word in words)


def test_words_become_tokens() -> None:
    case = SearchConfig(start_with="A red dog", avoid=("Cat", "white ball"))
    assert Constraints.of(case, VOCABULARY) == Constraints(ids("a", "red", "dog"), (ids("cat"), ids("white", "ball")))
    assert Constraints.of(SearchConfig(min_length=5), VOCABULARY) == FREE


PIECES = Vocabulary((*SPECIAL, "a", "skate", "board", "##board", "##er", "犬", "##犬"))


def test_a_word_of_several_pieces_is_their_sequence_and_a_start_ends_with_a_whole_word() -> None:
    place = {word: i for i, word in enumerate(PIECES.words)}
    found = Constraints.of(SearchConfig(start_with="a skate", avoid=("skateboard", "board")), PIECES)
    assert found.start == (place["a"], place["skate"])
    assert found.avoid == ((place["skate"], place["##board"]), (place["board"],))
    assert found.no_continuing == (place["##board"], place["##er"], place["##犬"])
    assert Constraints.of(SearchConfig(start_with="犬"), PIECES).no_continuing == ()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (SearchConfig(avoid=("dog", "zebra")), "avoid: the model does not know the word 'zebra'"),
        (SearchConfig(start_with="a zebra"), "start_with: the model does not know the word 'zebra'"),
        (SearchConfig(avoid=("dog 🦓",)), "avoid: the model does not know the word '🦓'"),
        (SearchConfig(avoid=("...",)), "avoid has no word in '...'"),
        (SearchConfig(start_with="a dog on the grass", max_length=4), "start_with has 5 tokens, and captions have 4"),
        (SearchConfig(start_with="a red dog", avoid=("red dog",)), "start_with says 'red dog', which is to be avoided"),
    ],
)
def test_what_no_caption_can_do_is_told(case: SearchConfig, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Constraints.of(case, VOCABULARY)
    assert message in str(error.value)


def test_the_fewest_words_are_no_more_than_the_most() -> None:
    with pytest.raises(ConfigError, match="min_length must be 0 to max_length, which is 4"):
        SearchConfig(min_length=5, max_length=4)


# --- in the engines -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engines(checkpoint: Path) -> list[CaptionEngine]:
    return [load_engine(checkpoint, "cpu", name, threads=1, precision="f32") for name in ("torch", "openvino")]


def test_both_engines_keep_to_them(engines: list[CaptionEngine]) -> None:
    pixels = pictures(6, seed=3)
    case = SearchConfig(
        beam_size=4, num_captions=3, max_length=9, min_length=7, start_with="the two", avoid=("dog", "cat on", "man")
    )
    said = []
    for engine in engines:
        found = engine.caption(pixels, case)
        said.append([[caption.text for caption in mine] for mine in found])
        for mine in found:
            assert len(mine) == 3
            for caption in mine:
                text = caption.text.lower().rstrip(".")
                assert text.startswith("the two ")
                assert not {"dog", "man"} & set(text.split())
                assert "cat on" not in text
                assert 7 <= len(text.split()) <= 9
        assert [engine.caption(picture[None], case)[0] == mine for picture, mine in zip(pixels, found, strict=True)]
    assert said[0] == said[1]
    assert len({mine[0] for mine in said[0]}) > 1  # the pictures still matter


def test_forced_words_have_their_true_probability(engines: list[CaptionEngine]) -> None:
    """That of the free search, where it says the same."""
    for engine in engines:
        [[free]] = engine.caption(pictures(1), SearchConfig(beam_size=1, max_length=8))
        start = " ".join(token.text for token in free.tokens[:3])
        [[forced]] = engine.caption(pictures(1), SearchConfig(beam_size=1, max_length=8, start_with=start))
        assert forced.text == free.text
        assert [t.probability for t in forced.tokens] == pytest.approx([t.probability for t in free.tokens], rel=1e-4)


@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="no embedded model in this checkout")
def test_the_fewest_words_go_the_fast_way_and_find_the_same() -> None:
    engine = load_engine(EMBEDDED, "cpu", "openvino", threads=1, precision="f32")
    assert isinstance(engine, OpenVINOEngine)
    drawn = [np.asarray(draw_pair(random.Random(i), engine.config.preprocess.size)[0]) for i in range(6)]
    [lane], regions = engine.lanes, engine.encode(np.stack(drawn))
    engine.reranker = None  # the search's own order
    free = engine.config.search
    case = replace(free, min_length=15, num_captions=2)
    expected = beam_search(OpenVINOStepper(lane.step, regions), case)
    found = lane.find(regions, case)
    assert lane._searches
    assert [[h.words for h in mine] for mine in found] == [[h.words for h in mine] for mine in expected]
    assert all(len(h.words) > 15 for mine in found for h in mine)
    assert all(len(mine[0].words) <= 15 for mine in lane.find(regions, free))  # they would be shorter


def test_sampled_captions_keep_to_them_too(engines: list[CaptionEngine]) -> None:
    case = SearchConfig(strategy="sample", num_captions=3, max_length=9, seed=1, start_with="a", avoid=("a", "the")[1:])
    for engine in engines:
        said = [c.text.lower().rstrip(".").split() for mine in engine.caption(pictures(3), case) for c in mine]
        assert all(words[0] == "a" and "the" not in words for words in said)


def test_candidates_that_are_ranked_anew_keep_to_them(engines: list[CaptionEngine]) -> None:
    """The last stage is given nothing else."""
    engine = engines[1]
    seen = []

    def backwards(found, feature, tags):  # type: ignore[no-untyped-def]
        seen.extend(found)
        return list(reversed(found))

    engine.reranker = backwards  # type: ignore[assignment]
    try:
        case = SearchConfig(beam_size=4, max_length=8, start_with="the man", avoid=("dog",))
        found = engine.caption(pictures(3), case)
    finally:
        engine.reranker = None
    assert len(seen) == 12
    start, dog = ids("the", "man"), ids("dog")[0]
    assert all(h.words[:2] == start and dog not in h.words for h in seen)
    assert [mine[0].log_probability for mine in found] == pytest.approx([h.log_probability for h in seen[3::4]])
    assert np.isfinite([mine[0].log_probability for mine in found]).all()
