"""The OpenVINO engine: a checkpoint's exported graphs on the CPU, without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Importing OpenVINO reports to an analytics server and writes to the home folder, unless this package
# of its is absent: then it takes its own silent stub. No variable switches it off.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov

from model.caption import Caption
from model.checkpoint import GRAPHS, Checkpoint, open_checkpoint
from model.config import SearchConfig
from model.errors import CheckpointError
from model.runtime.cpu import cpu_quota
from model.runtime.engine import CaptionEngine, Regions
from model.runtime.results import StepDetails, captions_of, forced_words
from model.search import search as find
from model.vocabulary import START

ENCODER, STEP = "encoder", "step"
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
    """A `search.Stepper` over the step graph, whose state never leaves OpenVINO's own tensors."""

    def __init__(self, step: ov.CompiledModel, regions: OpenVINORegions) -> None:
        self.batch = len(regions)
        self._regions = regions
        self._request = step.create_infer_request()
        self._request.set_tensor("keys", ov.Tensor(regions.keys, shared_memory=True))
        self._request.set_tensor("values", ov.Tensor(regions.values, shared_memory=True))

    def start(self) -> NDArray[np.int64]:
        """One start word a picture, (B, 1)."""
        start = self._regions.start[:, None]
        self._state = np.concatenate([start, np.zeros_like(start)], -1)
        return np.full((self.batch, 1), START, np.int64)

    def step(self, words: NDArray[np.int64], parents: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Log-probabilities (B, K, V)."""
        results = self.run(words, parents)
        return np.array(results["log_probabilities"])

    def run(self, words: NDArray[np.int64], parents: NDArray[np.int64] | None) -> dict[str, NDArray[np.float32]]:
        """One step; every output by name, as views that the next step overwrites."""
        if parents is None:
            parents = np.zeros_like(words)
        outputs = self._request.infer({"words": words, "parents": parents, "state": self._state}, share_outputs=True)
        results = {port.get_any_name(): value for port, value in outputs.items()}
        self._state = results["state_out"].copy()
        return results


class OpenVINOEngine(CaptionEngine):
    """Runs a checkpoint's graphs with OpenVINO."""

    name, device = "openvino", "cpu"

    def __init__(self, folder: Path, threads: int = 0) -> None:
        checkpoint = open_checkpoint(folder)
        self.config, self.vocabulary, self.card = checkpoint.config, checkpoint.vocabulary, checkpoint.metrics
        core = ov.Core()
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads or cpu_quota(), "PERFORMANCE_HINT": "LATENCY",
                                  "CPU_DENORMALS_OPTIMIZATION": True, "INFERENCE_PRECISION_HINT": "f32"})  # fmt: skip
        self._core = core
        encoder, step = _read(core, checkpoint, ENCODER), _read(core, checkpoint, STEP)
        self._gate_names = tuple(step.get_rt_info(["gate_names"]).astype(str).split(","))
        rows, columns = (int(n) for n in step.get_rt_info(["grid"]).astype(str).split(","))
        self._grid = rows, columns
        self._encoder = core.compile_model(encoder, "CPU").create_infer_request()
        self._explaining = core.compile_model(step, "CPU")
        for output in [output for output in step.outputs if output.get_any_name() in EXPLAINING]:
            step.remove_result(output.get_node())
        self._step = core.compile_model(step, "CPU")

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
        stepper = OpenVINOStepper(self._explaining, regions)
        stepper.start()
        B, N, T = words.shape
        same = np.broadcast_to(np.arange(N, dtype=np.int64), (B, N)).copy()
        kept: dict[str, list[NDArray[Any]]] = {name: [] for name in ("log_probabilities", *EXPLAINING)}
        for t in range(T):
            results = stepper.run(np.ascontiguousarray(words[:, :, t]), np.zeros_like(same) if t == 0 else same)
            for name, values in kept.items():
                values.append(results[name].copy())
        return StepDetails(*(np.stack(values, 2) for values in kept.values()))


def _read(core: ov.Core, checkpoint: Checkpoint, name: str) -> ov.Model:
    for suffix in ("xml", "bin"):
        checkpoint.verified(f"{GRAPHS}/{name}.{suffix}")
    path = checkpoint.folder / GRAPHS / f"{name}.xml"
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); export it again with training.export") from error
