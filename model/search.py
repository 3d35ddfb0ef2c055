"""Beam search and sampling over an abstract step, batched over pictures.

One code serves NumPy and torch (through array-api-compat), on any device. Nothing loops over
pictures or beams, and a step asks the device one question: how many pictures are finished?
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import array_api_compat
import numpy as np

from model.config import SearchConfig
from model.constraints import FREE, Constraints
from model.vocabulary import END, PAD, START, UNKNOWN

Array = Any  # a NumPy array or a torch tensor

LEAVING = 4  # finished pictures leave this many at a time, and a quarter of the batch: each time costs a copy of it
_SAMPLING_ROUNDS = 8  # how often sampling tries again for captions it has not drawn yet


class Candidates(NamedTuple):
    """The likeliest ways to go on, C a picture, best first, each array (B, C)."""

    scores: Array  # log-probability of the hypothesis with the word
    parents: Array  # which hypothesis it extends, int64
    words: Array  # int64
    log_probabilities: Array  # of the word alone


class Stepper(Protocol):
    """A decoder that remembers its own state for B pictures with K hypotheses each.

    A step takes words (B, K), the last word of each hypothesis, and parents (B, K), for each the index
    of the hypothesis of the step before that it extends; None at the first step.
    """

    batch: int  # B

    def start(self, hypotheses: int = 1) -> Array:
        """Reset to all pictures, each with K equal hypotheses: start words (B, K), int64."""

    def step(self, words: Array, parents: Array | None) -> Array:
        """Log-probabilities (B, K, V) of the next word, in an array that the search may write into."""

    def keep(self, rows: Array) -> None:
        """Go on with the pictures at `rows` alone, in that order."""


class Done(NamedTuple):
    """Captions that have ended, best first: scores (B, K), -inf in an empty place; the others (B, K, T)."""

    scores: Array
    words: Array
    log_probabilities: Array

    @classmethod
    def none(cls, xp: Any, like: Array, K: int, T: int) -> Done:
        """None yet, for scores such as `like`, (B, C)."""
        B, device = len(like), array_api_compat.device(like)
        return cls(
            xp.full((B, K), -float("inf"), dtype=like.dtype, device=device),
            xp.full((B, K, T), PAD, dtype=xp.int64, device=device),
            xp.zeros((B, K, T), dtype=like.dtype, device=device),
        )

    def joined_by(self, xp: Any, rows: Array, final: Array, scores: Array, words: Array, log_probs: Array) -> Done:
        """The best K of these and others: scores (B, C), words and log_probs (B, C, t).

        The places that are final (B, K), the first few of each picture, keep what they have.
        """
        K, T = self.words.shape[1:]
        order = xp.arange(K, 0, -1, dtype=scores.dtype, device=array_api_compat.device(scores))  # no score is above 0
        ranks = xp.concat([xp.where(final, order, self.scores), scores], axis=1)
        _, best = _top_k(ranks, K)
        return Done(
            xp.concat([self.scores, scores], axis=1)[rows, best],
            xp.concat([self.words, _pad_last(xp, words, T, PAD)], axis=1)[rows, best],
            xp.concat([self.log_probabilities, _pad_last(xp, log_probs, T, 0)], axis=1)[rows, best],
        )


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A found caption: word ids without start, ending with END; natural log-probability of each."""

    words: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    score: float  # what it was ranked by
    support: float | None = None  # by the picture's tags (`model.rerank.support`)

    @property
    def log_probability(self) -> float:
        """Natural log of the product of the words' probabilities."""
        return float(sum(self.log_probabilities))


def find_hypotheses(stepper: Stepper, config: SearchConfig, constraints: Constraints = FREE) -> list[list[Hypothesis]]:
    """For each picture `config.num_captions` distinct hypotheses, best first.

    constraints: `Constraints.of` the config, which has words where a search needs tokens.
    """
    if (config.avoid or config.start_with) and constraints == FREE:
        raise ValueError("a search with words to avoid or to start with needs their tokens")
    if config.strategy == "sample":
        return _sample_distinct(stepper, config, constraints)
    return beam_search(stepper, config, constraints)


def beam_search(stepper: Stepper, config: SearchConfig, constraints: Constraints = FREE) -> list[list[Hypothesis]]:
    """The best captions found with `beam_size` live hypotheses a picture (1 is greedy search).

    Ranked by log-probability / tokens ** length_penalty (Wu et al. 2016, with a plain power), the end
    counted as a token. A caption's place is final when no live hypothesis scores better now: without a
    length penalty none could later, and with one, waiting until none could takes half as many steps again
    for captions no better. What ends later than that takes a place behind, whatever its score, and a
    picture is finished when `num_captions` places are final. So, of as many live hypotheses, the search
    for one caption finds the first of those that the search for several finds, and so on.
    At `max_length` words only the end may follow, at its true probability, so every caption is a
    whole sequence of the model, and so is every one that is made to start with some words, which come at
    their true probabilities too.
    """
    return _collect(_as_they_finish(stepper, config, constraints), stepper.batch, config.num_captions)


def _as_they_finish(stepper: Stepper, config: SearchConfig, constraints: Constraints) -> Iterator[tuple[Array, Done]]:
    """The loop of `beam_search`: pictures leave the batch when they are finished, their places and what ended there."""
    K = live_hypotheses(config)
    C = candidate_count(K)
    T = config.max_length + 1
    words = stepper.start(K)
    xp = array_api_compat.array_namespace(words)
    on_host = array_api_compat.is_numpy_array(words)
    device = array_api_compat.device(words)
    minus_inf = -float("inf")
    places = xp.arange(stepper.batch, device=device)  # of the pictures still searched, among all
    rows = places[:, None]  # (B, 1): values[rows, index] picks (B, C, ...) from (B, K, ...)
    scores, history, history_lp = _one_alive(xp, words)
    final = xp.zeros((stepper.batch, K), dtype=xp.bool, device=device)  # the places of `done` that are final
    parent = done = None

    for t in range(T):
        forbidden = _forbidden(xp, history, t, config, constraints)
        best = best_candidates(stepper.step(words, parent), scores, forbidden, C)
        ended = best.words == END
        length = float(t + 1) ** config.length_penalty
        # On a GPU asking whether any ended would cost more than the work it saves.
        if not on_host or ended.any():
            # Those that end compete with the ones that ended before, those that do not live on.
            whole = xp.concat([history[rows, best.parents], best.words[:, :, None]], axis=-1)  # (B, C, t + 1)
            whole_lp = xp.concat([history_lp[rows, best.parents], best.log_probabilities[:, :, None]], axis=-1)
            done = Done.none(xp, best.scores, K, T) if done is None else done
            ranks = xp.where(ended, best.scores / length, minus_inf)
            done = done.joined_by(xp, rows, final, ranks, whole, whole_lp)
            live, order = _top_k(xp.where(ended, minus_inf, best.scores), K)
            best = Candidates(live, *(part[rows, order] for part in best[1:]))
        if t == T - 1:
            break
        scores, parent, words, log_probs = (part[:, :K] for part in best)
        history = xp.concat([history[rows, parent], words[:, :, None]], axis=-1)
        history_lp = xp.concat([history_lp[rows, parent], log_probs[:, :, None]], axis=-1)
        if done is None:
            continue
        final = final | (scores[:, :1] / length < done.scores)
        finished = final[:, config.num_captions - 1]
        count = int(xp.sum(xp.astype(finished, xp.int64)))
        if count == len(places):
            break
        if count >= max(LEAVING, len(places) / 4):
            order = xp.argsort(xp.astype(finished, xp.int64), stable=True)
            stay, leave = order[:-count], order[-count:]
            yield places[leave], Done(*(part[leave] for part in done))
            stepper.keep(stay)
            done = Done(*(part[stay] for part in done))
            places, final, scores, parent, words, history, history_lp = (
                part[stay] for part in (places, final, scores, parent, words, history, history_lp)
            )
            rows = rows[: len(stay)]
        elif count:
            # It finds nothing more while others go on: a batch gives what each alone gives.
            scores = xp.where(finished[:, None], minus_inf, scores)

    assert done is not None
    yield places, done


def _one_alive(xp: Any, words: Array) -> tuple[Array, Array, Array]:
    """Live hypotheses before the first word: their sum of log-probabilities, words and each word's log-probability.

    They begin as one, whose copies cannot win: arrays of one shape throughout cost less than the work saved.
    """
    (B, K), device = words.shape, array_api_compat.device(words)
    scores = xp.where(xp.arange(K, device=device) == 0, xp.zeros_like(words, dtype=xp.float32), -float("inf"))
    said = (xp.zeros((B, K, 0), dtype=dtype, device=device) for dtype in (xp.int64, xp.float32))
    return scores, *said


def live_hypotheses(config: SearchConfig) -> int:
    """K, how many hypotheses a beam search keeps alive: more captions than beams need as many, a wider search."""
    return max(config.beam_size, config.num_captions)


def candidate_count(K: int) -> int:
    """C, how many ways to go on a step of a beam search looks at.

    Each live hypothesis has one ending, so the best 2K hold K that go on. Greedy search takes the
    best and nothing else: a second-best ending would compete with the caption that went on.
    """
    return 2 * K if K > 1 else 1


def _sample_distinct(stepper: Stepper, config: SearchConfig, constraints: Constraints) -> list[list[Hypothesis]]:
    """Sampled captions, distinct, ranked by log-probability a token; rare gaps are filled by beam search."""
    seeds = [np.random.SeedSequence(config.seed) for _ in range(stepper.batch)]  # of None: each a fresh one
    found: list[dict[tuple[int, ...], Hypothesis]] = [{} for _ in seeds]
    for round in zip(*(seed.spawn(_SAMPLING_ROUNDS) for seed in seeds), strict=True):
        for mine, drawn in zip(found, sample(stepper, config, config.num_captions, round, constraints), strict=True):
            for hypothesis in drawn:
                if len(mine) < config.num_captions:
                    mine.setdefault(hypothesis.words, hypothesis)
        if all(len(mine) == config.num_captions for mine in found):
            break
    else:
        # A very sure model, or a tiny top_p, draws the same captions again and again.
        for mine, beam in zip(found, beam_search(stepper, config, constraints), strict=True):
            for hypothesis in beam:
                if len(mine) < config.num_captions:
                    mine.setdefault(hypothesis.words, hypothesis)
    return [sorted(mine.values(), key=lambda h: -h.log_probability / len(h.words)) for mine in found]


def sample(
    stepper: Stepper,
    config: SearchConfig,
    count: int,
    seeds: Sequence[np.random.SeedSequence],
    constraints: Constraints = FREE,
) -> list[list[Hypothesis]]:
    """`count` captions a picture drawn word by word from the `top_p` nucleus (Holtzman et al. 2020).

    Each picture has a seed, and so a stream of random numbers, of its own: a batch draws what each alone would draw.
    Reported log-probabilities are the model's own, before temperature and top_p.
    """
    streams = [np.random.default_rng(seed) for seed in seeds]
    words = stepper.start()
    xp = array_api_compat.array_namespace(words)
    device = array_api_compat.device(words)
    B = stepper.batch
    log_probs = stepper.step(words, None)  # (B, 1, V)
    parent = xp.zeros((B, count), dtype=xp.int64, device=device)
    log_probs = log_probs[xp.arange(B, device=device)[:, None], parent]  # (B, count, V)
    history = xp.zeros((B, count, 0), dtype=xp.int64, device=device)
    history_lp = xp.zeros((B, count, 0), dtype=log_probs.dtype, device=device)
    finished = xp.zeros((B, count), dtype=xp.bool, device=device)
    same = xp.broadcast_to(xp.arange(count, dtype=xp.int64, device=device), (B, count))
    for t in range(config.max_length + 1):
        _forbid(xp, log_probs, _forbidden(xp, history, t, config, constraints))
        draw = np.stack([stream.random(count) for stream in streams])
        draw = xp.asarray(draw, dtype=log_probs.dtype, device=device)
        word = _draw(xp, log_probs / config.temperature, config.top_p, draw)
        lp = xp.take_along_axis(log_probs, word[:, :, None], axis=-1)
        word = xp.where(finished, PAD, word)
        history = xp.concat([history, word[:, :, None]], axis=-1)
        history_lp = xp.concat([history_lp, xp.where(finished[:, :, None], 0.0, lp)], axis=-1)
        finished = finished | (word == END)
        if bool(xp.all(finished)):
            break
        log_probs = stepper.step(word, parent)
        parent = same
    lengths = xp.sum(xp.astype(history != PAD, history_lp.dtype), axis=-1)
    scores = xp.sum(history_lp, axis=-1) / lengths
    every = xp.arange(B, device=device)
    return _collect([(every, Done(scores, history, history_lp))], B, count)


def best_candidates(log_probs: Array, scores: Array, forbidden: Array | int, count: int) -> Candidates:
    """The `count` best of all hypotheses, each extended by every word that may follow it.

    log_probs: (B, K, V), overwritten. scores: (B, K), log-probabilities so far. forbidden: (B, K, F),
    words that may not follow; an int where only that word may. Fewer than `count` where there are not as many.
    """
    xp = array_api_compat.array_namespace(log_probs)
    B, K, V = log_probs.shape
    rows = xp.arange(B, device=array_api_compat.device(log_probs))[:, None]
    if isinstance(forbidden, int):
        log_probs, V = log_probs[:, :, forbidden : forbidden + 1], 1
    else:
        _forbid(xp, log_probs, forbidden)
    flat = xp.reshape(scores[:, :, None] + log_probs, (B, -1))
    top, index = _top_k(flat, min(count, K * V))
    words = xp.full_like(index, forbidden) if isinstance(forbidden, int) else index % V
    parents = index // V
    return Candidates(top, parents, words, xp.reshape(log_probs, (B, -1))[rows, index])


def _forbidden(xp: Any, history: Array, t: int, config: SearchConfig, constraints: Constraints) -> Array | int:
    """(B, K, F), what must not follow: special words, an end too soon, what is to be avoided, a repeated n-gram.

    An int where nothing but that word may follow: a word to start with, and at the limit the end.
    """
    if t < len(constraints.start):
        return constraints.start[t]
    if t == config.max_length:
        return END
    B, K, _ = history.shape
    device = array_api_compat.device(history)
    shortest = max(config.min_length, 1)
    never = [PAD, START, UNKNOWN, END] if t < shortest else [PAD, START, UNKNOWN]
    never += [ids[0] for ids in constraints.avoid if len(ids) == 1]
    never += constraints.no_continuing if t == len(constraints.start) else ()
    words = xp.broadcast_to(xp.asarray(never, dtype=xp.int64, device=device), (B, K, len(never)))
    lasts = []
    for *first, last in (ids for ids in constraints.avoid if 1 < len(ids) <= t + 1):
        # Several tokens in a row: where all but the last were just said.
        said = xp.ones((B, K), dtype=xp.bool, device=device)
        for i, word in enumerate(first):
            said = said & (history[:, :, t - len(first) + i] == word)
        lasts.append(xp.where(said, last, PAD))
    if lasts:
        words = xp.concat([words, xp.stack(lasts, axis=-1)], axis=-1)
    n = config.block_ngram
    if not n or t < n:
        return words
    # Where the last n - 1 words stood before, the word that followed then is forbidden now.
    windows = t - n + 1
    match = xp.ones((B, K, windows), dtype=xp.bool, device=device)
    for i in range(n - 1):
        match = match & (history[:, :, i : i + windows] == history[:, :, windows + i, None])
    if array_api_compat.is_numpy_array(match) and not match.any():
        return words
    followers = xp.where(match, history[:, :, n - 1 :], PAD)  # PAD is forbidden already
    return xp.concat([words, followers], axis=-1)


def _forbid(xp: Any, log_probs: Array, forbidden: Array | int) -> None:
    """Give -inf, in place, to the words (B, K, F) of (B, K, V); an int: to all but that word."""
    if isinstance(forbidden, int):
        log_probs[:, :, :forbidden] = -float("inf")
        log_probs[:, :, forbidden + 1 :] = -float("inf")
        return
    B, K, _ = log_probs.shape
    device = array_api_compat.device(log_probs)
    rows, columns = xp.arange(B, device=device)[:, None, None], xp.arange(K, device=device)[:, None]
    log_probs[rows, columns, forbidden] = -float("inf")


def _draw(xp: Any, log_probs: Array, top_p: float, draw: Array) -> Array:
    """Inverse-CDF sampling from the smallest set of words whose probability reaches `top_p`; draw in [0, 1)."""
    order = xp.argsort(log_probs, axis=-1, descending=True, stable=True)
    ranked = xp.take_along_axis(log_probs, order, axis=-1)
    ranked = xp.exp(ranked - ranked[:, :, :1])  # the first is 1: a low temperature underflows to 0 only the rest
    ranked = ranked / xp.sum(ranked, axis=-1, keepdims=True)
    cumulative = xp.cumulative_sum(ranked, axis=-1)
    kept = xp.where(cumulative - ranked < top_p, ranked, 0.0)
    cumulative = xp.cumulative_sum(kept, axis=-1)
    threshold = draw[:, :, None] * cumulative[:, :, -1:]
    rank = xp.sum(xp.astype(cumulative <= threshold, xp.int64), axis=-1, keepdims=True)
    # Rounding may push the threshold past the last kept word.
    last = xp.sum(xp.astype(kept > 0, xp.int64), axis=-1, keepdims=True) - 1
    return xp.take_along_axis(order, xp.minimum(rank, last), axis=-1)[:, :, 0]


def _pad_last(xp: Any, values: Array, length: int, fill: float) -> Array:
    """(B, C, t) -> (B, C, length), filled up with `fill`."""
    shape = (*values.shape[:2], length - values.shape[-1])
    device = array_api_compat.device(values)
    return xp.concat([values, xp.full(shape, fill, dtype=values.dtype, device=device)], axis=-1)


def _top_k(values: Array, k: int) -> tuple[Array, Array]:
    """The k largest of (B, N), best first, and where they stand (the standard has no top-k)."""
    if array_api_compat.is_torch_array(values):
        top = values.topk(k, dim=-1)
        return top.values, top.indices
    rows = np.arange(len(values))[:, None]
    index = np.argpartition(values, values.shape[-1] - k, axis=-1)[:, values.shape[-1] - k :]
    index = index[rows, np.argsort(-values[rows, index], axis=-1, kind="stable")]
    return values[rows, index], index


def _collect(found: Iterable[tuple[Array, Done]], batch: int, count: int) -> list[list[Hypothesis]]:
    """Places and what ended there -> each picture's hypotheses, on the host; empty places are left out."""
    collected: list[list[Hypothesis]] = [[] for _ in range(batch)]
    for places, done in found:
        on_host = (np.asarray(a.cpu() if hasattr(a, "cpu") else a) for a in (places, *done))
        for place, scores, words, log_probs in zip(*on_host, strict=True):
            for score, ids, lps in zip(*(part[:count].tolist() for part in (scores, words, log_probs)), strict=True):
                if np.isfinite(score):
                    end = ids.index(END) + 1
                    collected[place].append(Hypothesis(tuple(ids[:end]), tuple(lps[:end]), score))
    return collected


__all__ = ["Hypothesis", "Stepper", "beam_search", "candidate_count", "find_hypotheses", "live_hypotheses", "sample"]
