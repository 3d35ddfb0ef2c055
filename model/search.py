"""Beam search and sampling over an abstract step, batched over pictures.

One code serves NumPy and torch (through array-api-compat), on any device. Nothing loops over
pictures or beams, and a step asks the device one question: is everything finished?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import array_api_compat
import numpy as np

from model.config import SearchConfig
from model.vocabulary import END, PAD, START, UNKNOWN

Array = Any  # a NumPy array or a torch tensor

_SAMPLING_ROUNDS = 8  # how often sampling tries again for captions it has not drawn yet


class Stepper(Protocol):
    """A decoder that remembers its own state for B pictures with K hypotheses each."""

    batch: int  # B

    def start(self) -> Array:
        """Reset to one hypothesis a picture, the start word, (B, 1), int64: where and how arrays are kept."""

    def step(self, words: Array, parents: Array | None) -> Array:
        """Log-probabilities (B, K, V) of the next word, in an array that the search may write into.

        words: (B, K), the last word of each hypothesis. parents: (B, K), for each the index of the
        hypothesis of the step before that it extends; None at the first step.
        """


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A found caption: word ids without start, ending with END; natural log-probability of each."""

    words: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    score: float  # what it was ranked by

    @property
    def log_probability(self) -> float:
        """Natural log of the product of the words' probabilities."""
        return float(sum(self.log_probabilities))


def search(stepper: Stepper, config: SearchConfig) -> list[list[Hypothesis]]:
    """For each picture `config.num_captions` distinct hypotheses, best first."""
    if config.strategy == "sample":
        return _sample_distinct(stepper, config)
    return beam_search(stepper, config)


def beam_search(stepper: Stepper, config: SearchConfig) -> list[list[Hypothesis]]:
    """The best captions found with `beam_size` live hypotheses a picture (1 is greedy search).

    Ranked by log-probability / tokens ** length_penalty (Wu et al. 2016, with a plain power), the end
    counted as a token. A picture is finished when `num_captions` captions have ended and no live
    hypothesis scores better now than the worst of them: without a length penalty none could later.
    At `max_length` words only the end may follow, at its true probability, so every caption is a
    whole sequence of the model.
    """
    K = max(config.beam_size, config.num_captions)
    words = stepper.start()
    xp = array_api_compat.array_namespace(words)
    device = array_api_compat.device(words)
    B = stepper.batch
    rows = xp.arange(B, device=device)[:, None]  # (B, 1): values[rows, index] picks (B, C, ...) from (B, K, ...)
    log_probs = stepper.step(words, None)  # (B, 1, V)
    V = log_probs.shape[-1]
    minus_inf = -float("inf")
    # Live hypotheses: their sum of log-probabilities, words and each word's log-probability.
    scores = xp.zeros((B, 1), dtype=log_probs.dtype, device=device)
    history = xp.zeros((B, 1, 0), dtype=xp.int64, device=device)
    history_lp = xp.zeros((B, 1, 0), dtype=log_probs.dtype, device=device)
    # Ended ones, best first; -inf marks an empty place.
    T = config.max_length + 1
    done_scores = xp.full((B, K), minus_inf, dtype=log_probs.dtype, device=device)
    done_words = xp.full((B, K, T), PAD, dtype=xp.int64, device=device)
    done_lp = xp.zeros((B, K, T), dtype=log_probs.dtype, device=device)
    finished = xp.zeros((B,), dtype=xp.bool, device=device)

    for t in range(T):
        _restrict(xp, log_probs, history, t, config)
        candidates = xp.reshape(scores[:, :, None] + log_probs, (B, -1))  # (B, live * V)
        # Each live hypothesis has one ending, so the best 2K hold K that go on. Greedy search takes the
        # best and nothing else: a second-best ending would compete with the caption that went on.
        top, index = _top_k(candidates, min(2 * K, candidates.shape[-1]) if K > 1 else 1)  # (B, C)
        parent, word = index // V, index % V
        word_lp = xp.reshape(log_probs, (B, -1))[rows, index]
        # (B, C, t + 1): every candidate written out.
        cand_words = xp.concat([history[rows, parent], word[:, :, None]], axis=-1)
        cand_lp = xp.concat([history_lp[rows, parent], word_lp[:, :, None]], axis=-1)

        # Those that end compete with the ones that ended before. On a GPU asking whether any did
        # would cost more than the work it saves.
        ended = word == END
        length = float(t + 1) ** config.length_penalty
        if not array_api_compat.is_numpy_array(ended) or ended.any():
            pool_scores = xp.concat([done_scores, xp.where(ended, top / length, minus_inf)], axis=1)
            pool_words = xp.concat([done_words, _pad_last(xp, cand_words, T, PAD)], axis=1)
            pool_lp = xp.concat([done_lp, _pad_last(xp, cand_lp, T, 0)], axis=1)
            done_scores, best = _top_k(pool_scores, K)
            done_words, done_lp = pool_words[rows, best], pool_lp[rows, best]

        # Those that do not end live on.
        if t == T - 1:
            break
        scores, best = _top_k(xp.where(ended, minus_inf, top), min(K, top.shape[-1]))
        finished = finished | (scores[:, 0] / length < done_scores[:, config.num_captions - 1])
        if bool(xp.all(finished)):
            break
        # A finished picture finds nothing more while others go on: a batch gives what each alone gives.
        scores = xp.where(finished[:, None], minus_inf, scores)
        history, history_lp = cand_words[rows, best], cand_lp[rows, best]
        log_probs = stepper.step(history[:, :, -1], parent[rows, best])

    return _collect(done_scores, done_words, done_lp, config.num_captions)


def _sample_distinct(stepper: Stepper, config: SearchConfig) -> list[list[Hypothesis]]:
    """Sampled captions, distinct, ranked by log-probability a token; rare gaps are filled by beam search."""
    seed = np.random.SeedSequence(config.seed)
    found: list[dict[tuple[int, ...], Hypothesis]] = [{} for _ in range(stepper.batch)]
    for child in seed.spawn(_SAMPLING_ROUNDS):
        for mine, drawn in zip(found, sample(stepper, config, config.num_captions, child), strict=True):
            for hypothesis in drawn:
                if len(mine) < config.num_captions:
                    mine.setdefault(hypothesis.words, hypothesis)
        if all(len(mine) == config.num_captions for mine in found):
            break
    else:
        # A very sure model, or a tiny top_p, draws the same captions again and again.
        for mine, beam in zip(found, beam_search(stepper, config), strict=True):
            for hypothesis in beam:
                if len(mine) < config.num_captions:
                    mine.setdefault(hypothesis.words, hypothesis)
    return [sorted(mine.values(), key=lambda h: -h.log_probability / len(h.words)) for mine in found]


def sample(stepper: Stepper, config: SearchConfig, count: int, seed: np.random.SeedSequence) -> list[list[Hypothesis]]:
    """`count` captions a picture drawn word by word from the `top_p` nucleus (Holtzman et al. 2020).

    The random numbers are the same for every picture, so a batch draws what each alone would draw.
    Reported log-probabilities are the model's own, before temperature and top_p.
    """
    rng = np.random.default_rng(seed)
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
        _restrict(xp, log_probs, history, t, config)
        draw = xp.asarray(rng.random(count), dtype=log_probs.dtype, device=device)
        word = _draw(xp, log_probs / config.temperature, config.top_p, xp.broadcast_to(draw, (B, count)))
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
    return _collect(scores, history, history_lp, count)


def _restrict(xp: Any, log_probs: Array, history: Array, t: int, config: SearchConfig) -> None:
    """Give -inf, in place, to what must not follow: special words, an end at once, a repeated n-gram.

    At the limit nothing but the end may follow.
    """
    minus_inf = -float("inf")
    log_probs[:, :, [PAD, START, UNKNOWN]] = minus_inf
    if t == 0:
        log_probs[:, :, END] = minus_inf
    if t == config.max_length:
        log_probs[:, :, :END] = minus_inf
        log_probs[:, :, END + 1 :] = minus_inf
        return
    n = config.block_ngram
    if n and t >= n:
        # Where the last n - 1 words stood before, the word that followed then is forbidden now.
        windows = t - n + 1
        B, K, _ = history.shape
        device = array_api_compat.device(history)
        match = xp.ones((B, K, windows), dtype=xp.bool, device=device)
        for i in range(n - 1):
            match = match & (history[:, :, i : i + windows] == history[:, :, windows + i, None])
        followers = xp.where(match, history[:, :, n - 1 :], PAD)  # PAD is never said, so forbidding it is free
        rows = xp.arange(B, device=device)[:, None, None]
        columns = xp.arange(K, device=device)[None, :, None]
        log_probs[rows, columns, followers] = minus_inf


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


def _collect(scores: Array, words: Array, log_probs: Array, count: int) -> list[list[Hypothesis]]:
    """Arrays -> hypotheses, on the host; empty places are left out."""
    scores, words, log_probs = (np.asarray(a.cpu() if hasattr(a, "cpu") else a) for a in (scores, words, log_probs))
    found: list[list[Hypothesis]] = []
    for b in range(words.shape[0]):
        mine = []
        for k in range(min(count, words.shape[1])):
            if not np.isfinite(scores[b, k]):
                continue
            ids = words[b, k].tolist()
            ids = ids[: ids.index(END) + 1]
            mine.append(Hypothesis(tuple(ids), tuple(log_probs[b, k, : len(ids)].tolist()), float(scores[b, k])))
        found.append(mine)
    return found


__all__ = ["Hypothesis", "Stepper", "beam_search", "sample", "search"]
