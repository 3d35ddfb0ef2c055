"""The OpenVINO engine: a checkpoint's exported graphs on the CPU, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from model.caption import Caption
from model.checkpoint import GRAPHS, WEIGHTS, Checkpoint, open_checkpoint
from model.config import SearchConfig
from model.constraints import FREE
from model.errors import CheckpointError
from model.rerank import Reranker, thing_places
from model.runtime.cpu import cpu_quota, may_use_bf16, multiplies_8_bits, own_cpus
from model.runtime.engine import CaptionEngine, Lane, Precision, Regions
from model.runtime.openvino_search import BeamSearch, Shape, beam_search_graph
from model.runtime.results import StepDetails, captions_of, forced_words
from model.search import Hypothesis, find_hypotheses, live_hypotheses
from model.vocabulary import START

# The step graph comes twice: a step is bound by reading its weights, so with 8-bit weights (one scale a
# row, multiplied with inputs rounded to 8 bits too, one scale for 128 of them, where the processor can)
# it is three times as fast, and its captions are measured to be as good.
ENCODER, ENCODER_INT8, STEP, STEP_INT8 = "encoder", "encoder-int8", "step", "step-int8"
# Outputs of the step graph that only explanations need; the plain path runs a graph without them. (A decoder
# without attention has no output of that name.)
EXPLAINING = ("attention", "gates")
MAX_LANES = 8  # more threads than that share lanes: a lane takes about 50 MB
SEVERAL = 4  # pictures are searched at once: a step reads its weights for all of them
MAX_OTHER_SEARCHES = 8  # search graphs of all lanes for the beam sizes that are asked for first: 17 MB each


@dataclass(frozen=True)
class OpenVINORegions(Regions):
    """Encoded pictures: what the encoder graph gives of them.

    memory: by name, as the graphs lay it out, (B, ...): `start` (B, states * H), and the keys and values of the regions
    where the decoder attends to them. feature (B, d) and tags (B, G) are those of `model.captioner.Seen`.
    """

    memory: Mapping[str, NDArray[np.float32]]
    feature: NDArray[np.float32]
    tags: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.memory["start"])

    def select(self, rows: Sequence[int] | slice) -> OpenVINORegions:
        index = rows if isinstance(rows, slice) else list(rows)
        memory = {name: values[index] for name, values in self.memory.items()}
        return OpenVINORegions(memory, self.feature[index], self.tags[index])

    @classmethod
    def join(cls, parts: Sequence[OpenVINORegions]) -> OpenVINORegions:
        memory = {name: np.concatenate([part.memory[name] for part in parts]) for name in parts[0].memory}
        feature, tags = (np.concatenate(arrays) for arrays in zip(*((p.feature, p.tags) for p in parts), strict=True))
        return cls(memory, feature, tags)


class OpenVINOStepper:
    """A `search.Stepper` over an infer request of a step graph, for all that `beam_search_graph` does not do."""

    def __init__(self, request: ov.InferRequest, regions: OpenVINORegions) -> None:
        self.batch = len(regions)
        self._request, self._regions = request, regions
        self._inputs: dict[str, NDArray[Any]] = {}  # what OpenVINO reads, in memory that is kept here
        self._state = regions.memory["start"]

    def start(self, hypotheses: int = 1) -> NDArray[np.int64]:
        """The start word of K equal hypotheses a picture, (B, K)."""
        size = self._request.get_tensor("state").shape[-1]  # all layers': the picture starts the first, zeros the rest
        self._state = np.zeros((self.batch, hypotheses, size), np.float32)
        for name, values in self._regions.memory.items():
            if name == "start":
                self._state[..., : values.shape[-1]] = values[:, None]
            else:
                self._set(name, values)
        return np.full((self.batch, hypotheses), START, np.int64)

    def step(self, words: NDArray[np.int64], parents: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Log-probabilities (B, K, V), in memory that the next step uses again."""
        self._set("words", words)
        self._set("parents", np.zeros_like(words) if parents is None else parents)
        self._set("state", self._state)
        self._request.infer(share_outputs=True)
        self._state = self.output("state_out")
        return self.output("log_probabilities")

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with the pictures at `rows` alone."""
        self._state = self._state[rows]
        for name in self._regions.memory.keys() - {"start"}:
            self._set(name, self._inputs[name][rows])

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
    """One thread's infer requests, each of a model of its own, compiled when it is needed.

    A model with one stream runs in the thread that calls it. To hand every step to a thread of OpenVINO's and wait
    for it left a sixth of two cores idle; to hand over whole searches still cost a tenth of the captions a second.
    """

    def __init__(self, engine: OpenVINOEngine, threads: int) -> None:
        self.engine, self.threads = engine, threads
        self._encoder: ov.InferRequest | None = None
        self._searches: dict[Shape, BeamSearch] = {}

    def encode(self, pixels: NDArray[np.uint8]) -> OpenVINORegions:
        parts = [_encode(self.encoder, picture) for picture in pixels]
        return parts[0] if len(parts) == 1 else OpenVINORegions.join(parts)

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, OpenVINORegions)
        return self.engine.captions(regions, self.find(regions, search_config), explain)

    def find(self, regions: OpenVINORegions, search_config: SearchConfig | None) -> list[list[Hypothesis]]:
        """The best hypotheses of each picture."""
        wanted = search_config or self.engine.config.search
        found = self._find(regions, self.engine.candidates(wanted))
        return self.engine.ranked(found, regions.feature, regions.tags, wanted)

    def _find(self, regions: OpenVINORegions, search_config: SearchConfig) -> list[list[Hypothesis]]:
        """What the search finds, in its own order; one with words to avoid or to start with goes step by step."""
        constraints = self.engine.constraints(search_config)
        whole_at_once = search_config.strategy == "beam" and constraints == FREE
        found: list[list[Hypothesis]] = []
        while len(found) < len(regions):
            whole = self._beam_search(len(regions) - len(found), search_config) if whole_at_once else None
            if whole is None:
                rest = regions.select(range(len(found), len(regions)))
                return found + find_hypotheses(OpenVINOStepper(self.step, rest), search_config, constraints)
            some = slice(len(found), len(found) + whole.pictures)
            found += whole.find(regions.select(some).memory, search_config)
        return found

    @property
    def encoder(self) -> ov.InferRequest:
        """Of the encoder graph."""
        if self._encoder is None:  # a cached property of Python 3.11 has one lock for those of all lanes
            shared = self.threads == self.engine.threads
            self._encoder = self.engine.encoder if shared else self.engine.compile_encoder(self.threads)
        return self._encoder

    @cached_property
    def step(self) -> ov.InferRequest:
        """Of the step graph."""
        return self.engine.compile_decoder(None)

    def compile(self, several: bool) -> None:
        """What the checkpoint's own search needs, for a lone picture or for several too."""
        search_config = self.engine.candidates(self.engine.config.search)
        if several and self.threads < self.engine.threads:
            _ = self.encoder
        if search_config.strategy == "beam" and self.engine.constraints(search_config) == FREE:
            for pictures in (1, SEVERAL) if several else (1,):
                self._beam_search(pictures, search_config)

    def _beam_search(self, pictures: int, search_config: SearchConfig) -> BeamSearch | None:
        """A graph for the whole search of the next few of so many pictures; None if there are enough others already.

        The checkpoint's own beam size always has its graphs.
        """
        K, own = live_hypotheses(search_config), live_hypotheses(self.engine.config.search)
        others = sum(shape.hypotheses != own for shape in self._searches)
        room = own == K or others < MAX_OTHER_SEARCHES // len(self.engine.lanes)
        for size in (SEVERAL, 1) if pictures > SEVERAL / 2 else (1,):
            shape = Shape(size, K, search_config.block_ngram)
            if shape not in self._searches and room:
                self._searches[shape] = BeamSearch(self.engine.compile_decoder(shape), shape)
            if shape in self._searches:
                return self._searches[shape]
        return None


class OpenVINOEngine(CaptionEngine):
    """Runs a checkpoint's graphs with OpenVINO."""

    name, device = "openvino", "cpu"
    gains_from_batches = False  # its encoder takes one picture: a known shape plans better than batches gain
    searched_at_once = SEVERAL

    def __init__(self, folder: Path, threads: int = 0, precision: Precision = "auto") -> None:
        checkpoint = open_checkpoint(folder)
        self.config, self.vocabulary, self.card = checkpoint.config, checkpoint.vocabulary, checkpoint.metrics
        self.reranker, self.things = Reranker.of(checkpoint), thing_places(checkpoint)
        core = self._core = ov.Core()
        self.threads = threads or cpu_quota()
        core.set_property("CPU", {"PERFORMANCE_HINT": "LATENCY", "CPU_DENORMALS_OPTIMIZATION": True})
        fast = precision == "auto"
        self._sums_8_bits = multiplies_8_bits()
        int8 = fast and f"{GRAPHS}/{ENCODER_INT8}.xml" in checkpoint.digests and self._sums_8_bits
        bf16 = fast and may_use_bf16() and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._encoder = _read(core, checkpoint, ENCODER_INT8 if int8 else ENCODER)
        self._encoder_precision = "bf16" if bf16 else "f32"  # of what is not in 8 bits
        self.precision = "int8" if int8 else self._encoder_precision
        size = self.config.preprocess.size
        self._encoder.reshape({"pixels": [1, size, size, 3]})
        self._step = _read(core, checkpoint, STEP_INT8 if fast else STEP)
        self._gate_names = tuple(self._step.get_rt_info(["gate_names"]).astype(str).split(","))
        rows, columns = (int(n) for n in self._step.get_rt_info(["grid"]).astype(str).split(","))
        self._grid = rows, columns
        self._explaining_model = self._step.clone()
        self._explaining: ov.InferRequest | None = None
        self._explaining_lock = Lock()  # one request for all lanes
        for output in [output for output in self._step.outputs if output.get_any_name() in EXPLAINING]:
            self._step.remove_result(output.get_node())
        # Each lane's thread takes pictures of its own all the way, which saves meeting at every layer.
        count = min(self.threads, MAX_LANES)
        self._lanes = tuple(
            OpenVINOLane(self, self.threads // count + (i < self.threads % count)) for i in range(count)
        )

    @property
    def lanes(self) -> tuple[OpenVINOLane, ...]:
        return self._lanes

    @property
    def warm_up_sizes(self) -> Sequence[int]:
        """A lone picture, one for each lane, and several for each."""
        return sorted({1, len(self.lanes), SEVERAL * len(self.lanes)})

    def warm_up(self, batch_sizes: Sequence[int] | None = None) -> None:
        """As every engine's, after the graphs were compiled side by side: one alone keeps no second core busy."""
        several = max(batch_sizes or self.warm_up_sizes) > 1
        compiling = [self._pool.submit(lane.compile, several) for lane in self.lanes]
        _ = self.encoder
        for lane in compiling:
            lane.result()
        super().warm_up(batch_sizes)

    @cached_property
    def encoder(self) -> ov.InferRequest:
        """For a lone picture: every thread works on it."""
        return self.compile_encoder(self.threads)

    def compile_encoder(self, threads: int) -> ov.InferRequest:
        """A request of an encoder that `threads` work on."""
        return self._compile(self._encoder, self._encoder_precision, threads)

    def compile_decoder(self, shape: Shape | None) -> ov.InferRequest:
        """A request of the graph that searches with `shape`, or of a single step. Thread-safe."""
        # Too small to share between threads.
        return self._compile(beam_search_graph(self._step, shape) if shape else self._step, "f32", 1)

    def _compile(self, graph: ov.Model, precision: str, threads: int) -> ov.InferRequest:
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        # Threads that have to meet keep to a CPU each where these are ours alone. Else whatever runs on one would
        # hold them all up.
        settings["ENABLE_CPU_PINNING"] = own_cpus(threads) is not None
        # Without such an instruction oneDNN has no product of inputs that are rounded on the way: it fails.
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 128 if self._sums_8_bits else 0
        compiled = self._core.compile_model(graph, "CPU", settings)
        return compiled.create_infer_request()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(self.lanes), "engine")

    def tags(self, regions: Regions) -> NDArray[np.float32]:
        assert isinstance(regions, OpenVINORegions)
        return regions.tags

    def encode(self, pixels: NDArray[np.uint8]) -> OpenVINORegions:
        if len(pixels) == 1:
            return _encode(self.encoder, pixels[0])
        shares = self._shares(len(pixels))
        parts = self._pool.map(lambda lane, rows: lane.encode(pixels[rows]), self.lanes, shares)
        return OpenVINORegions.join(list(parts))

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, OpenVINORegions)
        if len(regions) == 1:
            return self.lanes[0].generate(regions, search_config, explain)
        shares = [regions.select(rows.tolist()) for rows in self._shares(len(regions))]
        parts = self._pool.map(lambda lane, part: lane.find(part, search_config), self.lanes, shares)
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
                self._explaining = self._compile(self._explaining_model, "f32", 1)
            stepper = OpenVINOStepper(self._explaining, regions)
            stepper.start()
            B, N, T = words.shape
            same = np.broadcast_to(np.arange(N, dtype=np.int64), (B, N)).copy()
            outputs = {port.any_name for port in self._explaining.model_outputs}
            kept: dict[str, list[NDArray[Any]]] = {name: [] for name in StepDetails._fields if name in outputs}
            for t in range(T):
                stepper.step(words[:, :, t], None if t == 0 else same)
                for name, values in kept.items():
                    values.append(stepper.output(name).copy())
        details = {name: np.stack(values, 2) for name, values in kept.items()}
        return StepDetails(details["log_probabilities"], details.get("attention"), details["gates"])


def _encode(request: ov.InferRequest, picture: NDArray[np.uint8]) -> OpenVINORegions:
    """(size, size, 3) -> one encoded picture."""
    results = request.infer({"pixels": np.ascontiguousarray(picture)[None]}, share_inputs=True)
    memory = {port.any_name: results[port] for port in request.model_outputs}
    nothing = np.zeros((1, 0), np.float32)
    return OpenVINORegions(feature=memory.pop("feature", nothing), tags=memory.pop("tags", nothing), memory=memory)


def _read(core: ov.Core, checkpoint: Checkpoint, name: str) -> ov.Model:
    path, own = checkpoint.verified(f"{GRAPHS}/{name}.xml"), f"{GRAPHS}/{name}.bin"
    weights = checkpoint.verified(own if own in checkpoint.digests else WEIGHTS)
    try:
        return core.read_model(path, weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); export it again with training.finishing.export"
        ) from error
