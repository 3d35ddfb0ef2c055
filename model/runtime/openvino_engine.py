"""The OpenVINO engine: a checkpoint's exported graphs on the CPU, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as opset
from numpy.typing import NDArray

from model.caption import Caption
from model.checkpoint import GRAPHS, Checkpoint, open_checkpoint
from model.config import SearchConfig
from model.errors import CheckpointError
from model.runtime.cpu import cpu_quota
from model.runtime.engine import CaptionEngine, Lane, Precision, Regions
from model.runtime.results import StepDetails, captions_of, forced_words
from model.search import Candidates, Hypothesis, best_candidates
from model.search import search as find
from model.vocabulary import START

# The step graph comes twice: a step is bound by reading its weights, so with 8-bit weights (one scale a
# row, multiplied with inputs rounded to 8 bits too, one scale for 128 of them, where the processor can)
# it is three times as fast, and its captions are measured to be as good.
ENCODER, STEP, STEP_INT8 = "encoder", "step", "step-int8"
# Outputs of the step graph that only explanations need; the plain path runs a graph without them.
EXPLAINING = ("attention", "gates")
MAX_LANES = 8  # more threads than that share lanes: a lane takes about 25 MB
OUTPUTS = ("keys", "values", "start")  # of the encoder graph, in the order of OpenVINORegions


@dataclass(frozen=True)
class OpenVINORegions(Regions):
    """Encoded pictures: keys and values (B, ...) as the graphs lay them out, start (B, states * H)."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    start: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.keys.shape[0])

    def select(self, rows: Sequence[int]) -> OpenVINORegions:
        index = list(rows)
        return OpenVINORegions(self.keys[index], self.values[index], self.start[index])

    @classmethod
    def join(cls, parts: Sequence[OpenVINORegions]) -> OpenVINORegions:
        return cls(*map(np.concatenate, zip(*((p.keys, p.values, p.start) for p in parts), strict=True)))


class OpenVINOStepper:
    """A `search.Stepper` over an infer request of a step graph."""

    def __init__(self, request: ov.InferRequest, regions: OpenVINORegions) -> None:
        self.batch = len(regions)
        self._request, self._regions = request, regions
        self._inputs: dict[str, NDArray[Any]] = {}  # what OpenVINO reads, in memory that is kept here
        self._state = regions.start

    def start(self, hypotheses: int = 1) -> NDArray[np.int64]:
        """The start word of K equal hypotheses a picture, (B, K)."""
        size = self._request.get_tensor("state").shape[-1]  # all layers': the picture starts the first, zeros the rest
        self._state = np.zeros((self.batch, hypotheses, size), np.float32)
        self._state[..., : self._regions.start.shape[-1]] = self._regions.start[:, None]
        self._set("keys", self._regions.keys)
        self._set("values", self._regions.values)
        return np.full((self.batch, hypotheses), START, np.int64)

    def step(self, words: NDArray[np.int64], parents: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Log-probabilities (B, K, V), in memory that the next step uses again."""
        scores = np.zeros(words.shape, np.float32)
        self.candidates(words, parents, scores, np.zeros((*words.shape, 1), np.int64), 1)
        return self.output("log_probabilities")

    def candidates(
        self,
        words: NDArray[np.int64],
        parents: NDArray[np.int64] | None,
        scores: NDArray[np.float32],
        forbidden: NDArray[np.int64] | None,
        count: int,
    ) -> Candidates:
        """A step, and the `count` best hypotheses it leads to, found inside the graph."""
        self._set("scores", scores)
        self._set("forbidden", np.zeros((*words.shape, 1), np.int64) if forbidden is None else forbidden)
        self._set("count", np.asarray(1 if forbidden is None else count, np.int64))
        self.run(words, parents)
        if forbidden is None:
            return best_candidates(self.output("log_probabilities"), scores, None, count)
        index = self.output("candidates")
        size = self._request.get_tensor("log_probabilities").shape[-1]
        return Candidates(
            self.output("candidate_scores").copy(), index // size, index % size, self.output("candidate_words").copy()
        )

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with the pictures at `rows` alone."""
        self._state = self._state[rows]
        for name in ("keys", "values"):
            self._set(name, self._inputs[name][rows])

    def run(self, words: NDArray[np.int64], parents: NDArray[np.int64] | None) -> None:
        """One step; `output` then reads what it gave."""
        self._set("words", words)
        self._set("parents", np.zeros_like(words) if parents is None else parents)
        self._set("state", self._state)
        self._request.infer(share_outputs=True)
        self._state = self.output("state_out")

    def output(self, name: str) -> NDArray[np.float32]:
        """An output of the last step, a view that the next step overwrites."""
        values: NDArray[np.float32] = self._request.get_tensor(name).data
        return values

    def _set(self, name: str, values: NDArray[Any]) -> None:
        """Bind an input once for each shape, then only fill it."""
        bound = self._inputs.get(name)
        if bound is None or bound.shape != values.shape:
            # A copy of its own: the given array may be read-only, not contiguous, or an output of the graph.
            self._inputs[name] = np.array(values, order="C")
            self._request.set_tensor(name, ov.Tensor(self._inputs[name], shared_memory=True))
        else:
            np.copyto(bound, values)


class OpenVINOLane(Lane):
    """One thread's infer requests, or those of a lone picture."""

    def __init__(self, engine: OpenVINOEngine, encoder: ov.InferRequest, step: ov.InferRequest) -> None:
        self.engine, self.encoder, self.step = engine, encoder, step

    def encode(self, pixels: NDArray[np.uint8]) -> OpenVINORegions:
        parts = [self._encode(picture[None]) for picture in pixels]
        return parts[0] if len(parts) == 1 else OpenVINORegions.join(parts)

    def generate(
        self, regions: Regions, search: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, OpenVINORegions)
        return self.engine.captions(regions, self.find(regions, search), explain)

    def find(self, regions: OpenVINORegions, search: SearchConfig | None) -> list[list[Hypothesis]]:
        """The best hypotheses of each picture."""
        return find(OpenVINOStepper(self.step, regions), search or self.engine.config.search)

    def _encode(self, pixels: NDArray[np.uint8]) -> OpenVINORegions:
        results = self.encoder.infer({"pixels": np.ascontiguousarray(pixels)}, share_inputs=True)
        return OpenVINORegions(*(results[name] for name in OUTPUTS))


class OpenVINOEngine(CaptionEngine):
    """Runs a checkpoint's graphs with OpenVINO."""

    name, device = "openvino", "cpu"
    encodes_together = False  # the encoder's graph takes one picture: see below

    def __init__(self, folder: Path, threads: int = 0, precision: Precision = "auto") -> None:
        checkpoint = open_checkpoint(folder)
        self.config, self.vocabulary, self.card = checkpoint.config, checkpoint.vocabulary, checkpoint.metrics
        core = self._core = ov.Core()
        threads = threads or cpu_quota()
        # Threads are not tied to cores: whatever else runs on one of them would hold them up.
        common = {"PERFORMANCE_HINT": "LATENCY", "CPU_DENORMALS_OPTIMIZATION": True, "ENABLE_CPU_PINNING": False}
        core.set_property("CPU", common)
        fast = precision == "auto"
        bf16 = fast and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        encoder = _read(core, checkpoint, ENCODER)
        size = self.config.preprocess.size
        encoder.reshape({"pixels": [1, size, size, 3]})  # a known shape plans better than any batch gains
        step = _read(core, checkpoint, STEP_INT8 if fast else STEP)
        self._gate_names = tuple(step.get_rt_info(["gate_names"]).astype(str).split(","))
        rows, columns = (int(n) for n in step.get_rt_info(["grid"]).astype(str).split(","))
        self._grid = rows, columns
        self._explaining_model = step.clone()
        self._explaining: ov.InferRequest | None = None
        self._explaining_lock = Lock()  # one request for all lanes
        for output in [output for output in step.outputs if output.get_any_name() in EXPLAINING]:
            step.remove_result(output.get_node())
        _add_candidates(step)

        self._graphs = (encoder, "bf16" if bf16 else "f32"), (step, "f32")
        self._threads = threads
        self._alone = self._lane(threads)

    @property
    def alone(self) -> OpenVINOLane:
        """For a lone picture: every thread works on its encoding."""
        return self._alone

    @cached_property
    def lanes(self) -> tuple[OpenVINOLane, ...]:
        """Each thread takes pictures of its own all the way, which saves meeting at every layer.

        Compiled when first asked for, since a lone picture needs none.
        """
        if self._threads == 1:
            return (self._alone,)
        count = min(self._threads, MAX_LANES)
        return tuple(self._lane(self._threads // count + (i < self._threads % count)) for i in range(count))

    def _lane(self, threads: int) -> OpenVINOLane:
        """Infer requests whose encoder has `threads`; a decoding step is too small to share between any.

        Each of a model of its own, with a copy of the weights: a model with one stream runs in the thread that
        calls it. To hand every step to a thread of OpenVINO's and wait for it left a sixth of two cores idle.
        """
        requests = []
        for (graph, precision), count in zip(self._graphs, (threads, 1), strict=True):
            settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": count, "NUM_STREAMS": 1}
            compiled = self._core.compile_model(graph, "CPU", {**settings, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128})
            requests.append(compiled.create_infer_request())
        return OpenVINOLane(self, *requests)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(self.lanes), "engine")

    def encode(self, pixels: NDArray[np.uint8]) -> OpenVINORegions:
        if len(pixels) == 1:
            return self._alone.encode(pixels)
        shares = self._shares(len(pixels))
        parts = self._pool.map(lambda lane, rows: lane.encode(pixels[rows]), self.lanes, shares)
        return OpenVINORegions.join(list(parts))

    def generate(
        self, regions: Regions, search: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, OpenVINORegions)
        if len(regions) == 1:
            return self._alone.generate(regions, search, explain)
        shares = [regions.select(rows.tolist()) for rows in self._shares(len(regions))]
        parts = self._pool.map(lambda lane, part: lane.find(part, search), self.lanes, shares)
        return self.captions(regions, [found for part in parts for found in part], explain)

    def captions(self, regions: OpenVINORegions, found: list[list[Hypothesis]], explain: bool) -> list[list[Caption]]:
        """Hypotheses as captions, explained where that is asked for. Thread-safe."""
        details = self._details(regions, forced_words(found)) if explain else None
        return captions_of(found, self.vocabulary, self._gate_names, self._grid, details)

    def _shares(self, count: int) -> list[NDArray[np.int64]]:
        """The rows of `count` pictures, dealt out to the lanes."""
        return np.array_split(np.arange(count), min(len(self.lanes), count))

    def _details(self, regions: OpenVINORegions, words: NDArray[np.int64]) -> StepDetails:
        """Run the found captions (B, N, T), start first, through the decoder again and keep what it looked at."""
        with self._explaining_lock:
            if self._explaining is None:  # compiled at the first explanation, for those who never ask for one
                settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
                compiled = self._core.compile_model(self._explaining_model, "CPU", settings)
                self._explaining = compiled.create_infer_request()
            stepper = OpenVINOStepper(self._explaining, regions)
            stepper.start()
            B, N, T = words.shape
            same = np.broadcast_to(np.arange(N, dtype=np.int64), (B, N)).copy()
            kept: dict[str, list[NDArray[Any]]] = {name: [] for name in ("log_probabilities", *EXPLAINING)}
            for t in range(T):
                stepper.run(words[:, :, t], None if t == 0 else same)
                for name, values in kept.items():
                    values.append(stepper.output(name).copy())
        return StepDetails(*(np.stack(values, 2) for values in kept.values()))


def _add_candidates(step: ov.Model) -> None:
    """Let a step graph find the likeliest ways to go on itself, so that only `count` numbers a picture leave it.

    In: scores (B, K), forbidden (B, K, F) and count, as `model.search.best_candidates` has them. Out: of the
    candidates (B, C), best first, the places among K * V, the scores and the words' own log-probabilities.
    """

    def given(name: str, type: Any, *shape: int) -> ov.Node:
        node = opset.parameter(shape, type, name)
        node.output(0).get_tensor().set_names({name})
        step.add_parameters([node])
        return node

    scores, forbidden = given("scores", np.float32, -1, -1), given("forbidden", np.int64, -1, -1, -1)
    count = given("count", np.int64)
    each, flat = opset.constant(np.int64(2)), opset.constant(np.array([0, -1], np.int64))
    log_probabilities = step.output("log_probabilities").get_node().input_value(0)  # (B, K, V)
    never = opset.broadcast(opset.constant(np.float32(-np.inf)), opset.shape_of(forbidden))
    allowed = opset.scatter_elements_update(log_probabilities, forbidden, never, each)
    totals = opset.reshape(opset.add(allowed, opset.unsqueeze(scores, each)), flat, True)  # (B, K * V)
    top = opset.topk(totals, count, 1, "max", "value", index_element_type="i64")
    words = opset.gather_elements(opset.reshape(allowed, flat, True), top.output(1), 1)
    outputs = {"candidate_scores": top.output(0), "candidates": top.output(1), "candidate_words": words.output(0)}
    for name, output in outputs.items():
        output.get_tensor().set_names({name})
        step.add_results([opset.result(output)])
    step.validate_nodes_and_infer_types()


def _read(core: ov.Core, checkpoint: Checkpoint, name: str) -> ov.Model:
    for suffix in ("xml", "bin"):
        checkpoint.verified(f"{GRAPHS}/{name}.{suffix}")
    path = checkpoint.folder / GRAPHS / f"{name}.xml"
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); export it again with training.export") from error
