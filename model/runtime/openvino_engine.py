"""The OpenVINO engine: a checkpoint's exported graphs on the CPU, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from model.caption import Caption
from model.checkpoint import GRAPHS, Checkpoint, open_checkpoint
from model.config import SearchConfig
from model.errors import CheckpointError
from model.runtime.cpu import cpu_quota
from model.runtime.engine import CaptionEngine, Precision, Regions
from model.runtime.results import StepDetails, captions_of, forced_words
from model.search import Hypothesis
from model.search import search as find
from model.vocabulary import START

# The step graph comes twice: a step is bound by reading its weights, so with 8-bit weights (one scale
# a row, computed in float32) it is three times as fast, and its captions are measured to be as good.
ENCODER, STEP, STEP_INT8 = "encoder", "step", "step-int8"
# Outputs of the step graph that only explanations need; the plain path runs a graph without them.
EXPLAINING = ("attention", "gates")
OUTPUTS = ("keys", "values", "start")  # of the encoder graph, in the order of OpenVINORegions

T = TypeVar("T")


@dataclass(frozen=True)
class OpenVINORegions(Regions):
    """Encoded pictures: keys and values (B, L, A), start (B, states * H)."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    start: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.keys.shape[0])

    def select(self, rows: Sequence[int]) -> OpenVINORegions:
        index = list(rows)
        return OpenVINORegions(self.keys[index], self.values[index], self.start[index])


class OpenVINOStepper:
    """A `search.Stepper` over an infer request of the step graph."""

    def __init__(self, request: ov.InferRequest, regions: OpenVINORegions) -> None:
        self.batch = len(regions)
        self._request, self._regions = request, regions
        # Tensors share memory with arrays; `_inputs` keeps those alive that OpenVINO reads.
        self._inputs: dict[str, NDArray[Any]] = {}
        self._state = regions.start
        self._set("keys", regions.keys)
        self._set("values", regions.values)

    def start(self) -> NDArray[np.int64]:
        """One start word a picture, (B, 1)."""
        start = self._regions.start[:, None]
        self._state = np.concatenate([start, np.zeros_like(start)], -1)
        return np.full((self.batch, 1), START, np.int64)

    def step(self, words: NDArray[np.int64], parents: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Log-probabilities (B, K, V), in memory that the next step uses again."""
        self.run(words, parents)
        return self.output("log_probabilities")

    def run(self, words: NDArray[np.int64], parents: NDArray[np.int64] | None) -> None:
        """One step; `output` then reads what it gave."""
        self._set("words", words)
        self._set("parents", np.zeros_like(words) if parents is None else parents)
        self._set("state", self._state)
        self._request.infer()
        self._state = self.output("state_out").copy()

    def output(self, name: str) -> NDArray[np.float32]:
        """An output of the last step, a view that the next step overwrites."""
        values: NDArray[np.float32] = self._request.get_tensor(name).data
        return values

    def _set(self, name: str, values: NDArray[Any]) -> None:
        self._inputs[name] = np.require(values, requirements=("C", "W"))  # OpenVINO takes no read-only memory
        self._request.set_tensor(name, ov.Tensor(self._inputs[name], shared_memory=True))


class OpenVINOEngine(CaptionEngine):
    """Runs a checkpoint's graphs with OpenVINO."""

    name, device = "openvino", "cpu"

    def __init__(self, folder: Path, threads: int = 0, precision: Precision = "auto") -> None:
        checkpoint = open_checkpoint(folder)
        self.config, self.vocabulary, self.card = checkpoint.config, checkpoint.vocabulary, checkpoint.metrics
        core = self._core = ov.Core()
        threads = threads or cpu_quota()
        core.set_property("CPU", {"PERFORMANCE_HINT": "LATENCY", "CPU_DENORMALS_OPTIMIZATION": True})
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
        for output in [output for output in step.outputs if output.get_any_name() in EXPLAINING]:
            step.remove_result(output.get_node())

        # One picture: every thread works on its encoding. Several: each thread takes some of them, all the
        # way, which saves meeting at every layer. A decoding step is too small to share among threads.
        precise = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}
        alone = core.compile_model(encoder, "CPU", {"INFERENCE_NUM_THREADS": threads, **precise})
        self._encoder = alone.create_infer_request()
        streams = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads}
        steps = core.compile_model(step, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **streams})
        self._steps = [steps.create_infer_request() for _ in range(threads)]
        self._encoders = [self._encoder]
        if threads > 1:
            side_by_side = core.compile_model(encoder, "CPU", {**precise, **streams})
            self._encoders = [side_by_side.create_infer_request() for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads, "engine")

    def encode(self, pixels: NDArray[np.uint8]) -> OpenVINORegions:
        def run(request: ov.InferRequest, rows: NDArray[np.int64]) -> list[dict[str, NDArray[np.float32]]]:
            encoded = []
            for row in rows:
                results = request.infer({"pixels": np.ascontiguousarray(pixels[row : row + 1])}, share_inputs=True)
                encoded.append({port.get_any_name(): value for port, value in results.items()})
            return encoded

        requests = [self._encoder] if len(pixels) == 1 else self._encoders
        parts = self._side_by_side(run, requests, len(pixels))
        return OpenVINORegions(*(np.concatenate([part[name] for part in parts]) for name in OUTPUTS))

    def generate(
        self, regions: Regions, search: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, OpenVINORegions)

        def run(request: ov.InferRequest, rows: NDArray[np.int64]) -> list[list[Hypothesis]]:
            return find(OpenVINOStepper(request, regions.select(rows.tolist())), search or self.config.search)

        found = self._side_by_side(run, self._steps, len(regions))
        details = self._details(regions, forced_words(found)) if explain else None
        return captions_of(found, self.vocabulary, self._gate_names, self._grid, details)

    def _side_by_side(
        self,
        run: Callable[[ov.InferRequest, NDArray[np.int64]], list[T]],
        requests: Sequence[ov.InferRequest],
        count: int,
    ) -> list[T]:
        """`run` for `count` pictures, their rows dealt out to the requests; results in order."""
        shares = np.array_split(np.arange(count), min(len(requests), count))
        if len(shares) == 1:
            return run(requests[0], shares[0])
        return [result for results in self._pool.map(run, requests, shares) for result in results]

    def _details(self, regions: OpenVINORegions, words: NDArray[np.int64]) -> StepDetails:
        """Run the found captions (B, N, T), start first, through the decoder again and keep what it looked at."""
        if self._explaining is None:  # compiled at the first explanation, for those who never ask for one
            compiled = self._core.compile_model(self._explaining_model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
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


def _read(core: ov.Core, checkpoint: Checkpoint, name: str) -> ov.Model:
    for suffix in ("xml", "bin"):
        checkpoint.verified(f"{GRAPHS}/{name}.{suffix}")
    path = checkpoint.folder / GRAPHS / f"{name}.xml"
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); export it again with training.export") from error
