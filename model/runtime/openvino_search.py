"""Beam search as one OpenVINO graph: a loop around the step graph, so that a caption is a single call.

What `model.search.beam_search` does for one picture, operation by operation. Python around the steps took
half as long as they did, and where all shapes are known OpenVINO has less to do at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import openvino.opset13 as op
from numpy.typing import NDArray

from model.config import MAX_LENGTH, SearchConfig
from model.search import Hypothesis
from model.vocabulary import END, PAD, START, UNKNOWN

# Of each of K hypotheses: its words, exact in float32, and their log-probabilities, (K, 2, T) in all.
WORDS, LOG_PROBABILITIES = 0, 1
T = MAX_LENGTH + 1


class Beams(NamedTuple):
    """What a search graph is made for."""

    hypotheses: int  # K
    block_ngram: int


def beam_search_graph(step: ov.Model, hypotheses: int, block_ngram: int) -> ov.Model:
    """From a step graph, the search of one picture's captions with K live `hypotheses`.

    In: keys and values as the encoder graph gives them; start (1, S), all layers' first state; limit, the most
    words of a caption; length_penalty; wanted, how many captions have to end; count, which is `considered(K)`.
    Out: scores (K,), best first, -inf in an empty place, and captions (K, 2, T), padded with `PAD`.
    """
    K, C = hypotheses, considered(hypotheses)
    body = step.clone()
    lead = {"keys": [1], "values": [1], "words": [1, K], "parents": [1, K], "state": [1, K]}
    body.reshape({name: [*known, *list(body.input(name).partial_shape)[len(known) :]] for name, known in lead.items()})
    given = {port.any_name: port.get_node() for port in body.inputs}
    log_probs, state = (body.output(name).get_node().input_value(0) for name in ("log_probabilities", "state_out"))
    V, S = log_probs.get_shape()[-1], state.get_shape()[-1]

    t, limit, wanted, count = (op.parameter([], np.int32) for _ in range(4))
    penalty = op.parameter([], np.float32)
    # The live hypotheses with their sums of log-probabilities, and the best K captions that have ended.
    scores, history = op.parameter([K], np.float32), op.parameter([K, 2, T], np.float32)
    done_scores, done = op.parameter([K], np.float32), op.parameter([K, 2, T], np.float32)

    # 1. What may follow: no special word, no end at once, only the end at the limit, no n-gram again.
    rules = np.zeros((3, V), np.float32)
    rules[:, [PAD, START, UNKNOWN]] = rules[0, END] = rules[2] = -np.inf
    rules[2, END] = 0
    rule = op.select(op.equal(t, _int(0)), _int(0), op.select(op.equal(t, limit), _int(2), _int(1)))
    allowed = op.add(op.reshape(log_probs, _int([K, V]), False), op.gather(op.constant(rules), rule, _int(0)))
    if 0 < block_ngram < T:
        followers = _followers(op.gather(history, _int(WORDS), _int(1)), t, block_ngram)
        never = op.constant(np.full((K, T - block_ngram + 1), -np.inf, np.float32))
        allowed = op.scatter_elements_update(allowed, followers, never, _int(1))

    # 2. The likeliest ways to go on, C of them. C comes from outside because OpenVINO sorts by a method that is
    # twenty times as slow here where it knows it beforehand.
    totals = op.add(allowed, op.unsqueeze(scores, _int(1)))
    best, place = (op.reshape(part, _int([C]), False) for part in _top(op.reshape(totals, _int([K * V]), False), count))
    parent, word = op.divide(place, _int(V)), op.mod(place, _int(V))
    log_prob = op.gather(op.reshape(allowed, _int([K * V]), False), place, _int(0))
    pair = op.concat([op.reshape(part, _int([-1, 1, 1]), False) for part in (op.convert(word, "f32"), log_prob)], 1)
    at_t = op.unsqueeze(t, _int(0))
    whole = op.scatter_update(op.gather(history, parent, _int(0)), at_t, pair, _int(2))  # (C, 2, T)

    # 3. Those that end compete with the ones that ended before, those that do not live on.
    ended, minus_inf = op.equal(word, _int(END)), op.constant(np.float32(-np.inf))
    length = op.power(op.convert(op.add(t, _int(1)), "f32"), penalty)
    ranks = op.select(ended, op.divide(best, length), minus_inf)
    done_scores_after, which = _top(op.concat([done_scores, ranks], 0), _int(K))
    done_after = op.gather(op.concat([done, whole], 0), which, _int(0))
    scores_after, live = _top(op.select(ended, minus_inf, best), _int(K))
    history_after = op.gather(whole, live, _int(0))
    words_after, parents_after = (
        op.convert(op.unsqueeze(op.gather(part, live, _int(0)), _int(0)), "i64") for part in (word, parent)
    )

    # 4. Go on while a live hypothesis scores as well now as the worst of the captions that are wanted.
    best_live = op.divide(op.gather(scores_after, _int(0), _int(0)), length)
    worst_done = op.gather(done_scores_after, op.subtract(wanted, _int(1)), _int(0))
    go_on = op.greater_equal(best_live, worst_done)

    # What each step hands to the next, and what the first begins with: one hypothesis, whose copies cannot win.
    start = _input("start", [1, S], np.float32)
    one = np.where(np.arange(K) == 0, np.float32(0), np.float32(-np.inf))
    nothing = op.constant(np.full((K, 2, T), PAD, np.float32))
    carried = [
        (given["words"], op.constant(np.full((1, K), START)), words_after),
        (given["parents"], op.constant(np.zeros((1, K), np.int64)), parents_after),
        (given["state"], op.tile(op.unsqueeze(start, _int(1)), _int([1, K, 1])), state),
        (scores, op.constant(one), scores_after),
        (history, nothing, history_after),
        (done_scores, op.constant(np.full(K, -np.inf, np.float32)), done_scores_after),
        (done, nothing, done_after),
    ]
    fixed = {
        "keys": given["keys"], "values": given["values"], "limit": limit, "wanted": wanted, "count": count,
        "length_penalty": penalty,
    }  # fmt: skip
    outside = {name: _input(name, inner.get_output_shape(0), inner.get_element_type()) for name, inner in fixed.items()}
    results = [op.result(after) for _, _, after in carried]
    go_on_result = op.result(op.unsqueeze(go_on, _int(0)))
    loop = op.loop(op.add(outside["limit"], _int(1)), op.constant(np.bool_(True)))
    parameters = [*(inner for inner, _, _ in carried), *fixed.values(), t]
    loop.set_function(ov.Model([*results, go_on_result], parameters, "step"))
    loop.set_special_body_ports([len(parameters) - 1, len(results)])  # where t comes in, and whether to go on out
    for (inner, first, _), result in zip(carried, results, strict=True):
        loop.set_merged_input(inner, first.output(0), result.output(0))
    for name, inner in fixed.items():
        loop.set_invariant_input(inner, outside[name].output(0))
    found = [op.result(loop.get_iter_value(result.output(0), -1)) for result in results[-2:]]
    for result, name in zip(found, ("scores", "captions"), strict=True):
        result.output(0).get_tensor().set_names({name})
    return ov.Model(found, [start, *outside.values()], "search")


def considered(hypotheses: int) -> int:
    """How many ways to go on a step looks at, as `model.search.beam_search` explains."""
    return 2 * hypotheses if hypotheses > 1 else 1


class BeamSearch:
    """An infer request of a search graph with K hypotheses; to be used from one thread at a time."""

    def __init__(self, request: ov.InferRequest, hypotheses: int) -> None:
        self._request = request
        # Bound once, in memory that is kept here, and filled: handing all inputs over took longer than two steps.
        self._limit, self._wanted = np.zeros((), np.int32), np.zeros((), np.int32)
        self._length_penalty = np.zeros((), np.float32)
        self._count = np.array(considered(hypotheses), np.int32)
        self._start = np.zeros(request.get_tensor("start").shape, np.float32)  # layers above the first begin with zeros
        for name in ("limit", "wanted", "length_penalty", "count", "start"):
            self._bind(name, getattr(self, f"_{name}"))

    def find(
        self, keys: NDArray[np.float32], values: NDArray[np.float32], start: NDArray[np.float32], config: SearchConfig
    ) -> list[Hypothesis]:
        """One picture's captions, best first, from what the encoder graph gives of it: arrays (1, ...)."""
        self._bind("keys", keys)
        self._bind("values", values)
        self._start[:, : start.shape[1]] = start
        self._limit[...], self._wanted[...] = config.max_length, config.num_captions
        self._length_penalty[...] = config.length_penalty
        self._request.infer(share_outputs=True)
        scores, captions = (self._request.get_tensor(name).data for name in ("scores", "captions"))
        found = []
        for score, caption in zip(scores[: config.num_captions].tolist(), captions, strict=False):
            if score > -np.inf:
                words = [int(word) for word in caption[WORDS].tolist()]
                end = words.index(END) + 1
                found.append(Hypothesis(tuple(words[:end]), tuple(caption[LOG_PROBABILITIES, :end].tolist()), score))
        return found

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        """Let OpenVINO read `array` where it lies; it must live as long as it is read."""
        self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))


def _followers(words: ov.Node, t: ov.Node, n: int) -> ov.Node:
    """Of words (K, T), those that followed the last n - 1 where they stood before: (K, T - n + 1), `PAD` for none."""
    windows = T - n + 1
    axis = _int(1)

    def shifted(by: int) -> ov.Node:
        return op.slice(words, _int([by]), _int([by + windows]), _int([1]), _int([1]))

    followers = shifted(n - 1)
    for i in range(n - 1):
        # Before there are n - 1 words this looks at places still empty, after which nothing follows.
        last = op.gather(words, op.add(t, _int([i - n + 1])), axis)
        followers = op.select(op.equal(shifted(i), last), followers, op.constant(np.float32(PAD)))
    return op.convert(followers, "i32")


def _top(values: ov.Node, k: ov.Node) -> tuple[ov.Output, ov.Output]:
    """The k largest, best first, and where they stand."""
    top = op.topk(values, k, 0, "max", "value", index_element_type="i32")
    return top.output(0), top.output(1)


def _input(name: str, shape: Sequence[int], type: Any) -> ov.Node:
    node = op.parameter(ov.PartialShape(list(shape)), type, name)
    node.output(0).get_tensor().set_names({name})
    return node


def _int(value: Any) -> ov.Node:
    return op.constant(np.asarray(value, np.int32))
