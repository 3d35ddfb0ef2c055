"""Beam search as one OpenVINO graph: a loop around the step graph, so that a caption is a single call.

What `model.search.beam_search` does, operation by operation. Python around the steps took
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
from model.search import Hypothesis, considered
from model.vocabulary import END, PAD, START, UNKNOWN

# Of each hypothesis: its words, exact in float32, and their log-probabilities, (2, T).
WORDS, LOG_PROBABILITIES = 0, 1
T = MAX_LENGTH + 1


class Shape(NamedTuple):
    """What a search graph is made for."""

    pictures: int  # B, searched at once
    hypotheses: int  # K of each
    block_ngram: int


def beam_search_graph(step: ov.Model, shape: Shape) -> ov.Model:
    """From a step graph, the search of the captions of B pictures with K live hypotheses each.

    In: keys and values as the encoder graph gives them; start (B, S), all layers' first state; limit, the most
    words of a caption; length_penalty; wanted, how many captions have to end; count, which is `considered(K)`.
    Out: scores (B, K), best first, -inf in an empty place, and captions (B, K, 2, T), padded with `PAD`.
    """
    B, K, block_ngram = shape
    C = considered(K)
    body = step.clone()
    lead = {"keys": [B], "values": [B], "words": [B, K], "parents": [B, K], "state": [B, K]}
    body.reshape({name: [*known, *list(body.input(name).partial_shape)[len(known) :]] for name, known in lead.items()})
    given = {port.any_name: port.get_node() for port in body.inputs}
    log_probs, state = (body.output(name).get_node().input_value(0) for name in ("log_probabilities", "state_out"))
    V, S = log_probs.get_shape()[-1], state.get_shape()[-1]

    t, limit, wanted, count = (op.parameter([], np.int32) for _ in range(4))
    penalty = op.parameter([], np.float32)
    # The live hypotheses with their sums of log-probabilities, and the best K captions that have ended.
    scores, history = op.parameter([B, K], np.float32), op.parameter([B, K, 2, T], np.float32)
    done_scores, done = op.parameter([B, K], np.float32), op.parameter([B, K, 2, T], np.float32)
    minus_inf = op.constant(np.float32(-np.inf))

    # 1. What may follow: no special word, no end at once, only the end at the limit, no n-gram again.
    rules = np.zeros((3, V), np.float32)
    rules[:, [PAD, START, UNKNOWN]] = rules[0, END] = rules[2] = -np.inf
    rules[2, END] = 0
    rule = op.select(op.equal(t, _int(0)), _int(0), op.select(op.equal(t, limit), _int(2), _int(1)))
    allowed = op.add(log_probs, op.gather(op.constant(rules), rule, _int(0)))
    if 0 < block_ngram < T:
        followers = _followers(op.gather(history, _int(WORDS), _int(2)), t, block_ngram)
        never = op.constant(np.full((B, K, T - block_ngram + 1), -np.inf, np.float32))
        allowed = op.scatter_elements_update(allowed, followers, never, _int(2))

    # 2. The likeliest ways to go on, C of them. C comes from outside because OpenVINO sorts by a method that is
    # twenty times as slow here where it knows it beforehand.
    totals = op.reshape(op.add(allowed, op.unsqueeze(scores, _int(2))), _int([B, K * V]), False)
    best, place = (op.reshape(part, _int([B, C]), False) for part in _top(totals, count))
    parent, word = op.divide(place, _int(V)), op.mod(place, _int(V))
    log_prob = _pick(op.reshape(allowed, _int([B, K * V]), False), place)
    pair = op.concat([op.reshape(part, _int([B, C, 1, 1]), False) for part in (op.convert(word, "f32"), log_prob)], 2)
    whole = op.scatter_update(_pick(history, parent), op.unsqueeze(t, _int(0)), pair, _int(3))  # (B, C, 2, T)

    # 3. Those that end compete with the ones that ended before, those that do not live on.
    ended = op.equal(word, _int(END))
    length = op.power(op.convert(op.add(t, _int(1)), "f32"), penalty)
    ranks = op.select(ended, op.divide(best, length), minus_inf)
    done_scores_after, which = _top(op.concat([done_scores, ranks], 1), _int(K))
    done_after = _pick(op.concat([done, whole], 1), which)
    live_scores, live = _top(op.select(ended, minus_inf, best), _int(K))
    history_after = _pick(whole, live)
    words_after, parents_after = (op.convert(_pick(part, live), "i64") for part in (word, parent))

    # 4. A picture goes on while a live hypothesis scores as well now as the worst of the captions that are wanted.
    # One that is finished finds nothing more while others go on.
    best_live = op.divide(op.gather(live_scores, _int(0), _int(1)), length)
    worst_done = op.gather(done_scores_after, op.subtract(wanted, _int(1)), _int(1))
    goes_on = op.greater_equal(best_live, worst_done)  # (B,)
    scores_after = op.select(op.unsqueeze(goes_on, _int(1)), live_scores, minus_inf)

    # What each step hands to the next, and what the first begins with: one hypothesis, whose copies cannot win.
    start = _input("start", [B, S], np.float32)
    one = np.where(np.arange(K) == 0, np.float32(0), np.float32(-np.inf))
    nothing = op.constant(np.full((B, K, 2, T), PAD, np.float32))
    carried = [
        (given["words"], op.constant(np.full((B, K), START)), words_after),
        (given["parents"], op.constant(np.zeros((B, K), np.int64)), parents_after),
        (given["state"], op.tile(op.unsqueeze(start, _int(1)), _int([1, K, 1])), state),
        (scores, op.constant(np.tile(one, (B, 1))), scores_after),
        (history, nothing, history_after),
        (done_scores, op.constant(np.full((B, K), -np.inf, np.float32)), done_scores_after),
        (done, nothing, done_after),
    ]
    fixed = {
        "keys": given["keys"], "values": given["values"], "limit": limit, "wanted": wanted, "count": count,
        "length_penalty": penalty,
    }  # fmt: skip
    outside = {name: _input(name, inner.get_output_shape(0), inner.get_element_type()) for name, inner in fixed.items()}
    results = [op.result(after) for _, _, after in carried]
    go_on = op.result(op.reduce_logical_or(goes_on, _int([0]), True))
    loop = op.loop(op.add(outside["limit"], _int(1)), op.constant(np.bool_(True)))
    parameters = [*(inner for inner, _, _ in carried), *fixed.values(), t]
    loop.set_function(ov.Model([*results, go_on], parameters, "step"))
    loop.set_special_body_ports([len(parameters) - 1, len(results)])  # where t comes in, and whether to go on out
    for (inner, first, _), result in zip(carried, results, strict=True):
        loop.set_merged_input(inner, first.output(0), result.output(0))
    for name, inner in fixed.items():
        loop.set_invariant_input(inner, outside[name].output(0))
    found = [op.result(loop.get_iter_value(result.output(0), -1)) for result in results[-2:]]
    for result, name in zip(found, ("scores", "captions"), strict=True):
        result.output(0).get_tensor().set_names({name})
    return ov.Model(found, [start, *outside.values()], "search")


class BeamSearch:
    """An infer request of a search graph; to be used from one thread at a time."""

    def __init__(self, request: ov.InferRequest, shape: Shape) -> None:
        self._request, self.pictures = request, shape.pictures
        # What OpenVINO reads is bound once and then only filled: handing it over took longer than two steps.
        self._inputs: dict[str, NDArray[Any]] = {}
        for port in request.model_inputs:
            array = np.zeros(port.shape, port.element_type.to_dtype())
            request.set_tensor(port.any_name, ov.Tensor(array, shared_memory=True))
            self._inputs[port.any_name] = array
        self._inputs["count"][...] = considered(shape.hypotheses)

    def find(
        self, keys: NDArray[np.float32], values: NDArray[np.float32], start: NDArray[np.float32], config: SearchConfig
    ) -> list[list[Hypothesis]]:
        """The captions of each of up to B pictures, best first, from what the encoder graph gives of them."""
        rows = np.minimum(np.arange(self.pictures), len(keys) - 1)  # too few are filled up with the last
        self._inputs["keys"][...] = keys[rows]
        self._inputs["values"][...] = values[rows]
        self._inputs["start"][:, : start.shape[1]] = start[rows]  # layers above the first begin with zeros
        self._inputs["limit"][...] = config.max_length
        self._inputs["wanted"][...] = config.num_captions
        self._inputs["length_penalty"][...] = config.length_penalty
        self._request.infer(share_outputs=True)
        scores, captions = (self._request.get_tensor(name).data for name in ("scores", "captions"))
        found: list[list[Hypothesis]] = []
        for mine, theirs in zip(scores[: len(keys), : config.num_captions].tolist(), captions, strict=False):
            found.append([])
            for score, caption in zip(mine, theirs, strict=False):
                if score > -np.inf:
                    words = [int(word) for word in caption[WORDS].tolist()]
                    end = words.index(END) + 1
                    log_probs = caption[LOG_PROBABILITIES, :end].tolist()
                    found[-1].append(Hypothesis(tuple(words[:end]), tuple(log_probs), score))
        return found


def _followers(words: ov.Node, t: ov.Node, n: int) -> ov.Node:
    """Of words (B, K, T) those that followed the last n - 1 where they stood before: (B, K, T - n + 1), else `PAD`."""
    windows = T - n + 1

    def shifted(by: int) -> ov.Node:
        return op.slice(words, _int([by]), _int([by + windows]), _int([1]), _int([2]))

    followers = shifted(n - 1)
    for i in range(n - 1):
        # Before there are n - 1 words this looks at places still empty, after which nothing follows.
        last = op.gather(words, op.add(t, _int([i - n + 1])), _int(2))
        followers = op.select(op.equal(shifted(i), last), followers, op.constant(np.float32(PAD)))
    return op.convert(followers, "i32")


def _top(values: ov.Node, k: ov.Node) -> tuple[ov.Output, ov.Output]:
    """The k largest of (B, N), best first, and where they stand."""
    top = op.topk(values, k, 1, "max", "value", index_element_type="i32")
    return top.output(0), top.output(1)


def _pick(values: ov.Node, index: ov.Node) -> ov.Node:
    """Each picture's own: values (B, N, ...) at index (B, C) -> (B, C, ...)."""
    if len(values.get_output_partial_shape(0)) == 2:
        # Gather with batch_dims reads wrong places of a matrix on x86 (OpenVINO 2026.4), also outside of it.
        return op.gather_elements(values, index, 1)
    return op.gather(values, index, _int(1), 1)


def _input(name: str, shape: Sequence[int], type: Any) -> ov.Node:
    node = op.parameter(ov.PartialShape(list(shape)), type, name)
    node.output(0).get_tensor().set_names({name})
    return node


def _int(value: Any) -> ov.Node:
    return op.constant(np.asarray(value, np.int32))
