"""ONNX Runtime with the same weights, for scripts/bench: an encoder and a decoder step, searched in NumPy."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import WEIGHTS
from model.caption import Caption
from model.captioner import Captioner
from model.checkpoint import load_captioner, open_checkpoint
from model.config import SearchConfig
from model.encoder import fold_norms
from model.rerank import Reranker, thing_places
from model.runtime.cpu import cpu_quota
from model.runtime.engine import CaptionEngine, Regions
from model.runtime.openvino_engine import OpenVINORegions
from model.runtime.results import captions_of
from model.search import find_hypotheses
from model.vocabulary import START
from training.finishing.export import EncoderGraph, StepGraph, split

Arrays = dict[str, NDArray[Any]]


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`."""

    def run(self, outputs: Sequence[str] | None, given: Arrays) -> list[NDArray[np.float32]]:
        """The outputs of these names, or all of them."""


class OnnxStepper:
    """A `search.Stepper` over a session of a step."""

    def __init__(self, session: Session, regions: OpenVINORegions, size: int) -> None:
        self.batch, self.session, self.size = len(regions), session, size
        self.memory = dict(regions.memory)
        self.first = self.memory.pop("start")

    def start(self, hypotheses: int = 1) -> NDArray[np.int64]:
        """The start word of K equal hypotheses a picture, (B, K)."""
        self.state = np.zeros((self.batch, hypotheses, self.size), np.float32)
        self.state[..., : self.first.shape[-1]] = self.first[:, None]  # the first layer's; the others begin at zero
        return np.full((self.batch, hypotheses), START, np.int64)

    def step(self, words: NDArray[np.int64], parents: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Log-probabilities (B, K, V)."""
        given: Arrays = {
            "words": words,
            "parents": np.zeros_like(words) if parents is None else parents,
            "state": self.state,
            **self.memory,
        }
        log_probabilities, self.state = self.session.run(("log_probabilities", "state_out"), given)
        return log_probabilities

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with the pictures at `rows` alone."""
        self.state = self.state[rows]
        self.memory = {name: values[rows] for name, values in self.memory.items()}


@dataclass(frozen=True, slots=True)
class Graph:
    """What is exported: inputs by name, and which of their axes vary."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: Sequence[str]
    varying: dict[str, dict[int, str]]


def graphs(captioner: Captioner) -> dict[str, Graph]:
    """The encoder, of one picture, and the step, of B pictures with K hypotheses of which each extends one of P."""
    size, decoder = captioner.config.preprocess.size, captioner.decoder
    pixels = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    with torch.no_grad():
        memory = captioner.encode(pixels)
        state = decoder.initial_state(memory, 3)
        parts = split(memory, captioner.config.decoder.attention_heads)
    words = torch.full((1, 3), START)
    seen = dict(zip(("keys", "values"), parts, strict=False))
    more = [name for name in ("feature", "tags") if getattr(captioner, name) is not None]
    inputs = {"words": words, "parents": torch.zeros_like(words), "state": state, **seen}
    varying = {name: {0: "B"} | ({1: "K"} if name in ("words", "parents") else {}) for name in inputs}
    varying["state"][1] = "P"
    return {
        "encoder": Graph(EncoderGraph(captioner), {"pixels": pixels}, [*seen, "start", *more], {}),
        "step": Graph(
            StepGraph(decoder, captioner.config.temperature, fast=True),
            inputs, ["log_probabilities", "state_out"], varying,
        ),
    }  # fmt: skip


class OnnxEngine(CaptionEngine):
    """Runs `graphs` with ONNX Runtime's CPU kernels, in float32 or with the step's matrices in 8 bits."""

    name, device = "onnxruntime", "cpu"

    def __init__(self, folder: Path = WEIGHTS, int8_step: bool = False, threads: int = 0) -> None:
        checkpoint = open_checkpoint(folder)
        self.config, self.vocabulary, self.card = checkpoint.config, checkpoint.vocabulary, checkpoint.metrics
        self.reranker, self.things = Reranker.of(checkpoint), thing_places(checkpoint)
        self.threads = threads or cpu_quota()
        captioner = load_captioner(folder)
        fold_norms(captioner.encoder)
        self.gate_names, self.grid = captioner.decoder.gate_names, captioner.grid
        with tempfile.TemporaryDirectory() as temporary:
            paths = {
                name: _export(graph, Path(temporary) / f"{name}.onnx") for name, graph in graphs(captioner).items()
            }
            if int8_step:
                paths["step"] = _quantised(paths["step"])
            self.encoder, self.step = (self._session(paths[name]) for name in ("encoder", "step"))
        self.encoder_outputs = [output.name for output in self.encoder.get_outputs()]
        self.state_size = next(given.shape[-1] for given in self.step.get_inputs() if given.name == "state")

    def encode(self, pixels: NDArray[np.uint8]) -> OpenVINORegions:
        """Pictures one by one, as our engine does."""
        return OpenVINORegions.join([self._encode(picture[None]) for picture in pixels])

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        """Never explained."""
        assert isinstance(regions, OpenVINORegions)
        wanted = search_config or self.config.search
        stepper = OnnxStepper(self.step, regions, self.state_size)
        found = find_hypotheses(stepper, self.candidates(wanted), self.constraints(wanted))
        found = self.ranked(found, regions.feature, regions.tags, wanted)
        return captions_of(found, self.vocabulary, self.gate_names, self.grid, None)

    def _encode(self, picture: NDArray[np.uint8]) -> OpenVINORegions:
        memory = dict(zip(self.encoder_outputs, self.encoder.run(None, {"pixels": picture}), strict=True))
        nothing = np.zeros((1, 0), np.float32)
        return OpenVINORegions(feature=memory.pop("feature", nothing), tags=memory.pop("tags", nothing), memory=memory)

    def _session(self, path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _export(graph: Graph, path: Path) -> Path:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every shape it reads
        torch.onnx.export(
            graph.module.eval(), tuple(graph.inputs.values()), path, input_names=list(graph.inputs),
            output_names=list(graph.outputs), dynamic_axes=graph.varying, dynamo=False,
        )  # fmt: skip
    return path


def _quantised(path: Path) -> Path:
    """Weights of 8 bits with a scale a column, and inputs rounded as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantised = path.with_stem(f"{path.stem}-int8")
    quantize_dynamic(path, quantised, per_channel=True, weight_type=QuantType.QInt8)
    return quantised
