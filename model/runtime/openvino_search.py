"""Beam search as one OpenVINO graph: a loop around the step graph, so that a caption is a single call.

What `model.search.beam_search` does, operation by operation; each function here names the lines it
repeats. Python around the steps took half as long as they did, and where all shapes are known
OpenVINO has less to do at each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import openvino.opset13 as op
from numpy.typing import NDArray

from model.config import MAX_LENGTH, SearchConfig
from model.search import Hypothesis, candidate_count
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

    In: what the encoder graph gives that the step reads at every step; start (B, S), all layers' first state; limit and
    shortest, the most words of a caption and the fewest, 1 or more; length_penalty; wanted, how many captions have to
    end; count, which is `candidate_count(K)`.
    Out: scores (B, K), best first, -inf in an empty place, and captions (B, K, 2, T), padded with `PAD`.
    """
    B, K, block_ngram = shape
    body = _with_known_shapes(step, B, K)
    given = {port.any_name: port.get_node() for port in body.inputs}
    log_probs, state = (body.output(name).get_node().input_value(0) for name in ("log_probabilities", "state_out"))

    t, limit, shortest, wanted, count = (op.parameter([], np.int32) for _ in range(5))
    penalty = op.parameter([], np.float32)
    # The live hypotheses with their sums of log-probabilities; the best K captions that have ended, and which of
    # their places are final.
    scores, history = op.parameter([B, K], np.float32), op.parameter([B, K, 2, T], np.float32)
    done = Done(op.parameter([B, K], np.float32), op.parameter([B, K, 2, T], np.float32))
    final = op.parameter([B, K], np.bool_)

    allowed = _allowed(log_probs, history, t, limit, shortest, block_ngram)
    best = _best_candidates(allowed, scores, history, t, count, candidate_count(K))
    ended = op.equal(best.words, _int(END))
    length = op.power(op.convert(op.add(t, _int(1)), "f32"), penalty)
    done_after = _joined(done, final, best, ended, length)
    live = _live(best, ended, K)
    final_after = _final(final, live.scores, done_after.scores, length)
    finished, scores_after = _finished(final_after, live.scores, wanted)

    # What each step hands to the next, and what the first begins with: one hypothesis, whose copies cannot win.
    start = _input("start", [B, state.get_shape()[-1]], np.float32)
    one = np.where(np.arange(K) == 0, np.float32(0), np.float32(-np.inf))
    nothing = op.constant(np.full((B, K, 2, T), PAD, np.float32))
    carried = [
        (given.pop("words"), op.constant(np.full((B, K), START)), op.convert(live.words, "i64")),
        (given.pop("parents"), op.constant(np.zeros((B, K), np.int64)), op.convert(live.parents, "i64")),
        (given.pop("state"), op.tile(op.unsqueeze(start, _int(1)), _int([1, K, 1])), state),
        (scores, op.constant(np.tile(one, (B, 1))), scores_after),
        (history, nothing, live.whole),
        (final, op.constant(np.zeros((B, K), np.bool_)), final_after),
        (done.scores, op.constant(np.full((B, K), -np.inf, np.float32)), done_after.scores),
        (done.captions, nothing, done_after.captions),
    ]
    # The same at every step: what is left of the step graph's inputs is the encoder's.
    numbers = {"limit": limit, "shortest": shortest, "wanted": wanted, "count": count, "length_penalty": penalty}
    fixed = {**given, **numbers}
    return _loop(t, carried, fixed, start, op.reduce_logical_or(op.logical_not(finished), _int([0]), True))


class Done(NamedTuple):
    """Captions that have ended, best first: scores (B, K), captions (B, K, 2, T)."""

    scores: ov.Node
    captions: ov.Node


class Candidates(NamedTuple):
    """Ways to go on, best first: scores, parents and words (B, C), and the hypotheses with the word (B, C, 2, T)."""

    scores: ov.Node
    parents: ov.Node
    words: ov.Node
    whole: ov.Node


def _with_known_shapes(step: ov.Model, B: int, K: int) -> ov.Model:
    """A copy of the step graph for B pictures with K hypotheses each."""
    body = step.clone()
    shapes = {}
    for port in body.inputs:
        lead = [B, K] if port.any_name in ("words", "parents", "state") else [B]
        shapes[port.any_name] = [*lead, *list(port.partial_shape)[len(lead) :]]
    body.reshape(shapes)
    return body


def _allowed(
    log_probs: ov.Node, history: ov.Node, t: ov.Node, limit: ov.Node, shortest: ov.Node, block_ngram: int
) -> ov.Node:
    """What may follow, (B, K, V): no special word, no end too soon, only the end at the limit, no n-gram again.

    `_forbidden` and `_forbid`:
        never = [PAD, START, UNKNOWN, END] if t < shortest else [PAD, START, UNKNOWN]
        followers = xp.where(match, history[:, :, n - 1 :], PAD)  # PAD is forbidden already
        log_probs[rows, columns, forbidden] = -float("inf")
    """
    B, K, V = log_probs.get_shape()
    rules = np.zeros((3, V), np.float32)
    rules[:, [PAD, START, UNKNOWN]] = rules[0, END] = rules[2] = -np.inf
    rules[2, END] = 0
    rule = op.select(op.equal(t, limit), _int(2), op.select(op.less(t, shortest), _int(0), _int(1)))
    allowed = op.add(log_probs, op.gather(op.constant(rules), rule, _int(0)))
    if 0 < block_ngram < T:
        followers = _followers(op.gather(history, _int(WORDS), _int(2)), t, block_ngram)
        never = op.constant(np.full((B, K, T - block_ngram + 1), -np.inf, np.float32))
        allowed = op.scatter_elements_update(allowed, followers, never, _int(2))
    return allowed


def _best_candidates(
    allowed: ov.Node, scores: ov.Node, history: ov.Node, t: ov.Node, count: ov.Node, C: int
) -> Candidates:
    """The C likeliest ways to go on, and what each then has said.

    `count` is C too, but comes from outside: OpenVINO sorts by a method that is twenty times as slow here where it
    knows it beforehand. `best_candidates` and `beam_search`:
        flat = xp.reshape(scores[:, :, None] + log_probs, (B, -1))
        top, index = _top_k(flat, min(count, K * V))
        whole = xp.concat([history[rows, best.parents], best.words[:, :, None]], axis=-1)  # (B, C, t + 1)
    """
    B, K, V = allowed.get_output_shape(0)
    totals = op.reshape(op.add(allowed, op.unsqueeze(scores, _int(2))), _int([B, K * V]), False)
    best, place = (op.reshape(part, _int([B, C]), False) for part in _top(totals, count))
    parents, words = op.divide(place, _int(V)), op.mod(place, _int(V))
    log_prob = _pick(op.reshape(allowed, _int([B, K * V]), False), place)
    pair = op.concat([op.reshape(part, _int([B, C, 1, 1]), False) for part in (op.convert(words, "f32"), log_prob)], 2)
    whole = op.scatter_update(_pick(history, parents), op.unsqueeze(t, _int(0)), pair, _int(3))
    return Candidates(best, parents, words, whole)


def _joined(done: Done, final: ov.Node, best: Candidates, ended: ov.Node, length: ov.Node) -> Done:
    """Those that end compete with the ones that ended before, but for their final places.

    `beam_search` and `Done.joined_by`:
        ranks = xp.where(ended, best.scores / length, minus_inf)
        ranks = xp.concat([xp.where(final, order, self.scores), scores], axis=1)
        _, best = _top_k(ranks, K)
    """
    K = done.scores.get_output_shape(0)[1]
    scores = op.select(ended, op.divide(best.scores, length), _minus_inf())
    order = op.constant(np.arange(K, 0, -1, dtype=np.float32))  # no score is above 0
    _, which = _top(op.concat([op.select(final, order, done.scores), scores], 1), _int(K))
    return Done(
        _pick(op.concat([done.scores, scores], 1), which), _pick(op.concat([done.captions, best.whole], 1), which)
    )


def _live(best: Candidates, ended: ov.Node, K: int) -> Candidates:
    """The K best that did not end live on.

    `beam_search`:
        live, order = _top_k(xp.where(ended, minus_inf, best.scores), K)
        best = Candidates(live, *(part[rows, order] for part in best[1:]))
    """
    scores, order = _top(op.select(ended, _minus_inf(), best.scores), _int(K))
    return Candidates(scores, *(_pick(part, order) for part in best[1:]))


def _final(final: ov.Node, live_scores: ov.Node, done_scores: ov.Node, length: ov.Node) -> ov.Node:
    """Which places (B, K) are final now.

    `beam_search`:
        final = final | (scores[:, :1] / length < done.scores)
    """
    best_live = op.divide(op.gather(live_scores, _int([0]), _int(1)), length)  # (B, 1)
    return op.logical_or(final, op.less(best_live, done_scores))


def _finished(final: ov.Node, scores: ov.Node, wanted: ov.Node) -> tuple[ov.Node, ov.Node]:
    """Which pictures (B,) are finished; they find nothing more while others go on.

    `beam_search`:
        finished = final[:, config.num_captions - 1]
        scores = xp.where(finished[:, None], minus_inf, scores)
    """
    finished = op.gather(final, op.subtract(wanted, _int(1)), _int(1))
    return finished, op.select(op.unsqueeze(finished, _int(1)), _minus_inf(), scores)


def _loop(
    t: ov.Node,
    carried: Sequence[tuple[ov.Node, ov.Node, ov.Node]],
    fixed: Mapping[str, ov.Node],
    start: ov.Node,
    go_on: ov.Node,
) -> ov.Model:
    """The graph around the step: `for t in range(T)` of `beam_search`, left when every picture is finished.

    carried: of what a step hands to the next its parameter, its first value and its value after; the last is `Done`,
    which comes out. fixed: parameters that come from outside by name, the same at every step.
    """
    outside = {name: _input(name, inner.get_output_shape(0), inner.get_element_type()) for name, inner in fixed.items()}
    results = [op.result(after) for _, _, after in carried]
    loop = op.loop(op.add(outside["limit"], _int(1)), op.constant(np.bool_(True)))
    parameters = [*(inner for inner, _, _ in carried), *fixed.values(), t]
    loop.set_function(ov.Model([*results, op.result(go_on)], parameters, "step"))
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
        self._inputs["count"][...] = candidate_count(shape.hypotheses)

    def find(self, memory: Mapping[str, NDArray[np.float32]], config: SearchConfig) -> list[list[Hypothesis]]:
        """The captions of each of up to B pictures, best first, from what the encoder graph gives of them."""
        count = len(memory["start"])
        for name, values in memory.items():
            # Layers above the first begin with zeros, and so does what is beyond `start` here.
            into = self._inputs[name][:, : values.shape[1]]
            into[:count] = values
            into[count:] = values[-1:]  # too few are filled up with the last
        self._inputs["limit"][...] = config.max_length
        self._inputs["shortest"][...] = max(config.min_length, 1)
        self._inputs["wanted"][...] = config.num_captions
        self._inputs["length_penalty"][...] = config.length_penalty
        self._request.infer(share_outputs=True)
        scores, captions = (self._request.get_tensor(name).data for name in ("scores", "captions"))
        found: list[list[Hypothesis]] = []
        for mine, theirs in zip(scores[:count, : config.num_captions].tolist(), captions, strict=False):
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


def _minus_inf() -> ov.Node:
    return op.constant(np.float32(-np.inf))


def _input(name: str, shape: Sequence[int], type: Any) -> ov.Node:
    node = op.parameter(ov.PartialShape(list(shape)), type, name)
    node.output(0).get_tensor().set_names({name})
    return node


def _int(value: Any) -> ov.Node:
    return op.constant(np.asarray(value, np.int32))
