"""The OpenVINO engine: a checkpoint's exported graphs on the CPU, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from model.search import search as find
from model.vocabulary import START

# The step graph comes twice: a step is bound by reading its weights, so with 8-bit weights (one scale
# a row, computed in float32) it is three times as fast, and its captions are measured to be as good.
ENCODER, STEP, STEP_INT8 = "encoder", "step", "step-int8"
# Outputs of the step graph that only explanations need; the plain path runs a graph without them.
EXPLAINING = ("attention", "gates")


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
        self._inputs[name] = np.ascontiguousarray(values)
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
        self._encoder = core.compile_model(
            encoder, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}
        ).create_infer_request()
        step = _read(core, checkpoint, STEP_INT8 if fast else STEP)
        self._gate_names = tuple(step.get_rt_info(["gate_names"]).astype(str).split(","))
        rows, columns = (int(n) for n in step.get_rt_info(["grid"]).astype(str).split(","))
        self._grid = rows, columns
        # A step is too small to share among threads: waking them costs more than they save.
        self._step_options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self._explaining_model = step.clone()
        self._explaining: ov.InferRequest | None = None
        for output in [output for output in step.outputs if output.get_any_name() in EXPLAINING]:
            step.remove_result(output.get_node())
        self._step = core.compile_model(step, "CPU", self._step_options).create_infer_request()

    def encode(self, pixels: NDArray[np.uint8]) -> OpenVINORegions:
        results = self._encoder.infer({"pixels": np.ascontiguousarray(pixels)}, share_inputs=True)
        by_name = {port.get_any_name(): value for port, value in results.items()}
        return OpenVINORegions(by_name["keys"], by_name["values"], by_name["start"])

    def generate(
        self, regions: Regions, search: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, OpenVINORegions)
        found = find(OpenVINOStepper(self._step, regions), search or self.config.search)
        details = self._details(regions, forced_words(found)) if explain else None
        return captions_of(found, self.vocabulary, self._gate_names, self._grid, details)

    def _details(self, regions: OpenVINORegions, words: NDArray[np.int64]) -> StepDetails:
        """Run the found captions (B, N, T), start first, through the decoder again and keep what it looked at."""
        if self._explaining is None:  # compiled at the first explanation, for those who never ask for one
            compiled = self._core.compile_model(self._explaining_model, "CPU", self._step_options)
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
