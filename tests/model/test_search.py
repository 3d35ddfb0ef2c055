from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.config import MIN_TEMPERATURE, MIN_TOP_P, SearchConfig
from model.search import Hypothesis, beam_search, find_hypotheses, sample
from model.vocabulary import END, SPECIAL, START

Words = tuple[int, ...]


@dataclass
class Model:
    """A tiny language model: what follows depends on every word before, and differs from picture to picture."""

    log_probs: NDArray[np.float64]  # (B, states, V)
    like: str = "numpy"  # or "torch": the arrays it answers with
    states: Any = field(init=False, default=None)
    rows: Any = field(init=False, default=None)  # the pictures still searched
    seen: list[int] = field(init=False, default_factory=list)  # how many they were, step by step

    @classmethod
    def random(cls, pictures: int, words: int, seed: int, spread: float = 2.0) -> Model:
        logits = np.random.default_rng(seed).normal(0, spread, (pictures, 997, len(SPECIAL) + words))
        logits[:, :, [i for i in range(len(SPECIAL)) if i != END]] = -1e4
        return cls(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))

    @property
    def batch(self) -> int:
        return len(self.log_probs)

    def alone(self, picture: int) -> Model:
        return Model(self.log_probs[picture : picture + 1], self.like)

    def start(self, hypotheses: int = 1) -> Any:
        self.states, self.rows = None, np.arange(self.batch)
        return self._as(np.full((self.batch, hypotheses), START, np.int64))

    def step(self, words: Any, parents: Any) -> Any:
        words = np.asarray(words)
        assert len(words) == len(self.rows)
        self.seen.append(len(words))
        if parents is None:
            self.states = np.ones_like(words)
        else:
            before = np.take_along_axis(self.states, np.asarray(parents), axis=1)
            self.states = (before * 31 + words) % 997
        return self._as(self.log_probs[self.rows[:, None], self.states])

    def keep(self, rows: Any) -> None:
        rows = np.asarray(rows)
        self.rows, self.states = self.rows[rows], self.states[rows]

    def _as(self, values: NDArray[Any]) -> Any:
        return torch.from_numpy(values) if self.like == "torch" else values

    def of(self, words: Words, picture: int = 0) -> list[float]:
        """Each word's log-probability after those before it."""
        state, found = 1, []
        for word in words:
            found.append(float(self.log_probs[picture, state, word]))
            state = (state * 31 + word) % 997
        return found


def score(words: Words, log_probs: list[float], length_penalty: float) -> float:
    return sum(log_probs) / len(words) ** length_penalty


def repeats(words: Words, n: int) -> bool:
    grams = [words[i : i + n] for i in range(len(words) - n)]  # the end is no part of an n-gram
    return n > 0 and len(set(grams)) < len(grams)


def every_caption(model: Model, config: SearchConfig, picture: int = 0) -> Iterator[tuple[Words, list[float]]]:
    """Every caption the model can say within the limits, by brute force."""
    known = range(len(SPECIAL), model.log_probs.shape[-1])
    for length in range(1, config.max_length + 1):
        for words in itertools.product(known, repeat=length):
            if not repeats((*words, END), config.block_ngram):
                yield (*words, END), model.of((*words, END), picture)


def ranking(model: Model, config: SearchConfig, picture: int = 0) -> list[tuple[float, Words, list[float]]]:
    """Every caption with its score, ranked as the search promises, by brute force.

    Best first of those with as many words or fewer; but a place is final once no unfinished sentence of as many
    words scores better, and what is longer comes behind it.
    """
    known = range(len(SPECIAL), model.log_probs.shape[-1])
    captions = list(every_caption(model, config, picture))
    ranked: list[tuple[float, Words, list[float]]] = []
    final = 0
    for length in range(1, config.max_length + 2):
        ended = [(score(said, lps, config.length_penalty), said, lps) for said, lps in captions if len(said) == length]
        ranked[final:] = sorted(ranked[final:] + ended, reverse=True)
        live = -math.inf
        if length <= config.max_length:
            for words in itertools.product(known, repeat=length):
                if not repeats((*words, END), config.block_ngram):
                    live = max(live, score(words, model.of(words, picture), config.length_penalty))
        final = max(final, sum(value > live for value, _, _ in ranked))
    return ranked


@pytest.fixture
def any_beam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the limit on beams that the service needs."""
    monkeypatch.setattr("model.config.MAX_BEAM_SIZE", 10_000)
    monkeypatch.setattr("model.config.MAX_CAPTIONS", 10_000)


lengths = st.sampled_from([0.0, 0.7, 1.0])
ngrams = st.sampled_from([0, 1, 2, 3])
seeds = st.integers(0, 2**31)


@pytest.mark.usefixtures("any_beam")
@pytest.mark.parametrize("like", ["numpy", "torch"])
def test_a_wide_beam_finds_all_captions_in_their_order(like: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), lengths, ngrams, seeds)
    def check(pictures: int, words: int, max_length: int, length_penalty: float, block_ngram: int, seed: int) -> None:
        model = replace(Model.random(pictures, words, seed), like=like)
        config = SearchConfig(
            beam_size=200, num_captions=200, max_length=max_length, length_penalty=length_penalty,
            block_ngram=block_ngram,
        )  # fmt: skip
        for picture, found in enumerate(beam_search(model, config)):
            expected = ranking(model, config, picture)
            assert [h.words for h in found] == [said for _, said, _ in expected]
            if not length_penalty:  # then none of those final could have been beaten
                assert expected == sorted(expected, reverse=True)
            for hypothesis, (wanted, _, lps) in zip(found, expected, strict=True):
                assert hypothesis.log_probabilities == pytest.approx(lps, abs=1e-9)
                assert hypothesis.log_probability == pytest.approx(sum(lps), abs=1e-9)
                assert hypothesis.score == pytest.approx(wanted, abs=1e-9)

    check()


@pytest.mark.usefixtures("any_beam")
def test_all_captions_together_have_the_probability_of_ending_in_time() -> None:
    """Without blocking the captions of a model are disjoint events: with those cut at the limit they sum to 1."""
    model = Model.random(1, 3, seed=5)
    config = SearchConfig(beam_size=200, num_captions=200, max_length=3, block_ngram=0)
    (found,) = beam_search(model, config)
    ended = sum(math.exp(h.log_probability) for h in found)
    empty = math.exp(model.of((END,))[0])
    cut = sum(
        math.exp(sum(model.of(words))) * (1 - math.exp(model.of((*words, END))[-1]))
        for words in itertools.product(range(4, 7), repeat=3)
    )
    assert ended + empty + cut == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(1, 10), st.integers(1, 5), lengths, ngrams, seeds)
def test_numpy_and_torch_find_the_same_and_a_batch_what_each_picture_alone(
    words: int, max_length: int, beam_size: int, num_captions: int, length_penalty: float, block_ngram: int, seed: int
) -> None:
    model = Model.random(4, words, seed)
    config = SearchConfig(
        beam_size=beam_size, num_captions=num_captions, max_length=max_length, length_penalty=length_penalty,
        block_ngram=block_ngram,
    )  # fmt: skip
    together = find_hypotheses(model, config)
    assert find_hypotheses(replace(model, like="torch"), config) == together
    for picture, found in enumerate(together):
        assert find_hypotheses(model.alone(picture), config) == [found]
        assert len({h.words for h in found}) == len(found) <= num_captions
        if length_penalty == 0:
            assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        for hypothesis in found:
            check_caption(hypothesis, model, config, picture)
            assert hypothesis.score == pytest.approx(
                score(hypothesis.words, list(hypothesis.log_probabilities), length_penalty)
            )


@pytest.mark.parametrize("like", ["numpy", "torch"])
def test_fewer_captions_are_the_first_of_more(like: str) -> None:
    later = 0  # captions that score better than one before them: what settling is for

    @settings(max_examples=60, deadline=None)
    @given(st.integers(2, 6), st.integers(1, 12), st.integers(1, 5), lengths, ngrams, seeds)
    @example(6, 8, 4, 1.0, 0, 2)  # of those drawn it may be none that has one
    def check(words: int, max_length: int, beam_size: int, length_penalty: float, block_ngram: int, seed: int) -> None:
        nonlocal later
        model = replace(Model.random(4, words, seed, spread=1.0), like=like)
        config = SearchConfig(
            beam_size=beam_size, max_length=max_length, length_penalty=length_penalty, block_ngram=block_ngram
        )
        most = find_hypotheses(model, replace(config, num_captions=beam_size))
        later += sum(a.score < b.score for found in most for a, b in itertools.pairwise(found))
        for count in range(1, beam_size):
            assert find_hypotheses(model, replace(config, num_captions=count)) == [found[:count] for found in most]

    check()
    assert later


@pytest.mark.parametrize("like", ["numpy", "torch"])
def test_finished_pictures_leave_the_batch(like: str) -> None:
    model = replace(Model.random(16, 6, seed=2), like=like)
    config = SearchConfig(beam_size=3, max_length=12, block_ngram=0)
    together = find_hypotheses(model, config)
    assert model.seen == sorted(model.seen, reverse=True)
    assert model.seen[0] == 16
    assert len(set(model.seen)) > 2
    for picture, found in enumerate(together):
        assert find_hypotheses(model.alone(picture), config) == [found]


def check_caption(hypothesis: Hypothesis, model: Model, config: SearchConfig, picture: int = 0) -> None:
    """It is a whole caption within the limits, with the model's own probabilities."""
    *said, last = hypothesis.words
    assert last == END
    assert 1 <= len(said) <= config.max_length
    assert all(word >= len(SPECIAL) for word in said)
    assert not repeats(hypothesis.words, config.block_ngram)
    assert hypothesis.log_probabilities == pytest.approx(model.of(hypothesis.words, picture))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 10), seeds)
def test_a_beam_of_one_is_greedy(words: int, max_length: int, seed: int) -> None:
    model = Model.random(3, words, seed)
    config = SearchConfig(beam_size=1, max_length=max_length, block_ngram=0)
    for picture, (found,) in enumerate(find_hypotheses(model, config)):
        state, said = 1, []
        while not said or said[-1] != END:
            follow = model.log_probs[picture, state].copy()
            if not said:
                follow[END] = -np.inf
            word = END if len(said) == max_length else int(follow.argmax())
            said.append(word)
            state = (state * 31 + word) % 997
        assert found.words == tuple(said)


def test_enough_captions_are_found_and_all_differ() -> None:
    model = Model.random(3, 6, seed=0)
    for strategy in ("beam", "sample"):
        config = SearchConfig(strategy=strategy, beam_size=1, num_captions=5, max_length=6, seed=0)
        for found in find_hypotheses(model, config):
            assert len({h.words for h in found}) == 5


def test_blocking_forbids_a_loop_that_the_model_wants() -> None:
    """A model that says one word for ever, or two in turn."""
    logits = np.full((1, 997, 7), -8.0)
    logits[:, :, 4] = 3.0
    logits[:, :, 5] = 2.9
    model = Model(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    loop = find_hypotheses(model, SearchConfig(beam_size=1, max_length=9, block_ngram=0))[0][0].words
    assert loop == (4,) * 9 + (END,)
    for n in (1, 2, 3):
        for strategy in ("beam", "sample"):
            config = SearchConfig(strategy=strategy, num_captions=3, max_length=9, block_ngram=n, seed=1)
            for hypothesis in find_hypotheses(model, config)[0]:
                assert not repeats(hypothesis.words, n)


# --- sampling --------------------------------------------------------------------------------------


def draws(model: Model, config: SearchConfig, count: int = 20_000) -> Counter[Words]:
    (found,) = sample(model, config, count, [np.random.SeedSequence(config.seed)])
    assert len(found) == count
    return Counter(h.words for h in found)


def chi_square(counts: Counter[Words], probabilities: dict[Words, float]) -> tuple[float, float]:
    """Pearson's statistic over the captions expected at least five times, and a bound met but once in a million."""
    total = counts.total()
    common = {words: p for words, p in probabilities.items() if p * total >= 5}
    statistic = sum((counts[words] - p * total) ** 2 / (p * total) for words, p in common.items())
    df = len(common)
    return statistic, df + 5 * math.sqrt(2 * df) + 15


@pytest.mark.parametrize("like", ["numpy", "torch"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.6), (1.7, 0.8)])
def test_samples_are_as_frequent_as_the_model_says(temperature: float, top_p: float, like: str) -> None:
    model = replace(Model.random(1, 3, seed=3, spread=1.0), like=like)
    config = SearchConfig(strategy="sample", temperature=temperature, top_p=top_p, max_length=2, block_ngram=0, seed=11)

    def chances(so_far: Words) -> dict[int, float]:
        """The probability of each next word after temperature and the nucleus, by their definitions."""
        if len(so_far) == 2:
            return {END: 1.0}
        state = 1
        for word in so_far:
            state = (state * 31 + word) % 997
        may = [4, 5, 6] if not so_far else [END, 4, 5, 6]
        weights = {w: math.exp(model.log_probs[0, state, w] / temperature) for w in may}
        total = sum(weights.values())
        kept: dict[int, float] = {}
        for word in sorted(may, key=lambda w: -weights[w]):
            kept[word] = weights[word] / total
            if sum(kept.values()) >= top_p:
                break
        return {word: p / sum(kept.values()) for word, p in kept.items()}

    expected: dict[Words, float] = {}
    open_ones: list[tuple[Words, float]] = [((), 1.0)]
    while open_ones:
        words, p = open_ones.pop()
        for word, chance in chances(words).items():
            if word == END:
                expected[(*words, END)] = p * chance
            else:
                open_ones.append(((*words, word), p * chance))
    assert sum(expected.values()) == pytest.approx(1)

    counts = draws(model, config)
    assert counts.keys() <= expected.keys()  # nothing outside the nucleus
    statistic, bound = chi_square(counts, expected)
    assert statistic < bound
    other, bound = chi_square(draws(model, replace(config, temperature=temperature * 1.5)), expected)
    assert other > bound  # the test can tell


def test_a_seed_gives_the_same_captions_and_another_seed_others() -> None:
    model = Model.random(2, 8, seed=0)
    config = SearchConfig(strategy="sample", num_captions=3, seed=42)
    first = find_hypotheses(model, config)
    assert find_hypotheses(model, config) == first
    assert find_hypotheses(replace(model, like="torch"), config) == first
    assert find_hypotheses(model, replace(config, seed=43)) != first
    assert find_hypotheses(model, replace(config, seed=None)) != find_hypotheses(model, replace(config, seed=None))


@pytest.mark.parametrize("like", ["numpy", "torch"])
def test_without_a_seed_each_picture_of_a_batch_draws_for_itself(like: str) -> None:
    """The same picture many times: its captions are independent, as frequent as the model says."""
    alone = Model.random(1, 2, seed=1, spread=0.5)
    copies = 4000
    model = Model(np.repeat(alone.log_probs, copies, axis=0), like)
    config = SearchConfig(strategy="sample", max_length=1, block_ngram=0)
    said = [found[0].words for found in find_hypotheses(model, config)]
    chances = {(word, END): math.exp(alone.of((word,))[0]) for word in (4, 5)}
    chances = {words: p / sum(chances.values()) for words, p in chances.items()}
    statistic, bound = chi_square(Counter(said), chances)
    assert statistic < bound
    pairs = Counter(zip(said[::2], said[1::2], strict=True))
    statistic, bound = chi_square(pairs, {(a, b): chances[a] * chances[b] for a in chances for b in chances})  # type: ignore[arg-type, misc]
    assert statistic < bound


def test_with_a_seed_the_same_picture_gets_the_same_whatever_comes_with_it() -> None:
    alone = Model.random(1, 6, seed=1)
    config = SearchConfig(strategy="sample", num_captions=3, max_length=6, seed=5)
    [found] = find_hypotheses(alone, config)
    beside = Model(np.concatenate([Model.random(2, 6, seed=2).log_probs, *[alone.log_probs] * 2]))
    assert find_hypotheses(beside, config)[2:] == [found, found]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 6), st.integers(1, 5), st.floats(0.05, 3), st.floats(0.05, 1), seeds)
def test_a_batch_draws_what_each_picture_alone_would(
    words: int, max_length: int, num_captions: int, temperature: float, top_p: float, seed: int
) -> None:
    model = Model.random(3, words, seed)
    config = SearchConfig(
        strategy="sample", num_captions=num_captions, max_length=max_length, temperature=temperature, top_p=top_p,
        seed=seed,
    )  # fmt: skip
    together = find_hypotheses(model, config)
    for picture, found in enumerate(together):
        assert find_hypotheses(model.alone(picture), config) == [found]
        ranks = [h.log_probability / len(h.words) for h in found]
        assert ranks == sorted(ranks, reverse=True)
        for hypothesis in found:
            check_caption(hypothesis, model, config, picture)


@pytest.mark.parametrize("like", ["numpy", "torch"])
@pytest.mark.parametrize("cold", [{"temperature": MIN_TEMPERATURE}, {"top_p": MIN_TOP_P}])
def test_the_coldest_sampling_is_greedy(cold: dict[str, float], like: str) -> None:
    model = replace(Model.random(4, 6, seed=9), like=like)
    greedy = find_hypotheses(model, SearchConfig(beam_size=1, max_length=7))
    sampled = find_hypotheses(model, SearchConfig(strategy="sample", max_length=7, seed=0, **cold))  # type: ignore[arg-type]
    assert [found[0].words for found in sampled] == [found[0].words for found in greedy]


def test_a_sure_model_is_asked_for_more_captions_than_it_would_draw() -> None:
    """Where sampling draws one caption again and again, beam search fills the gaps."""
    model = Model.random(2, 5, seed=4)
    config = SearchConfig(strategy="sample", num_captions=4, max_length=5, top_p=1e-6, seed=0)
    for picture, found in enumerate(find_hypotheses(model, config)):
        assert len({h.words for h in found}) == 4
        greedy = find_hypotheses(model.alone(picture), SearchConfig(beam_size=1, max_length=5))[0][0]
        assert greedy.words in {h.words for h in found}
