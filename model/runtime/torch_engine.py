"""The torch engine: CUDA with bf16 autocast, or the CPU; and the torch side of decoding that training uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.caption import Caption
from model.checkpoint import load_captioner, open_checkpoint
from model.config import SearchConfig
from model.decoder import Decoder, Memory
from model.errors import EngineUnavailable
from model.rerank import Reranker, thing_places
from model.runtime.cpu import cpu_quota
from model.runtime.engine import CaptionEngine, Device, Precision, Regions
from model.runtime.results import StepDetails, captions_of, forced_words
from model.search import find_hypotheses
from model.vocabulary import START


class TorchStepper:
    """A `search.Stepper` over a torch decoder; keeps the state of all hypotheses between steps."""

    def __init__(self, decoder: Decoder, memory: Memory, temperature: float = 1.0) -> None:
        self.decoder, self.all, self.temperature = decoder, memory, temperature
        self.batch = memory.keys.shape[0]
        self.memory = memory
        self.state = decoder.initial_state(memory, 1)

    def start(self, hypotheses: int = 1) -> Tensor:
        """The start word of K equal hypotheses a picture, (B, K)."""
        self.memory = self.all
        self.state = self.decoder.initial_state(self.memory, hypotheses)
        return torch.full((self.batch, hypotheses), START, dtype=torch.int64, device=self.memory.keys.device)

    def step(self, words: Tensor, parents: Tensor | None) -> Tensor:
        """Log-probabilities (B, K, V), float32."""
        if parents is not None:
            index = parents[:, :, None].expand(-1, -1, self.state.shape[-1])
            self.state = self.state.gather(1, index)
        out = self.decoder.step(self.memory, words, self.state)
        self.state = out.state
        return self.decoder.log_probabilities(out.logits.float(), self.temperature)

    def keep(self, rows: Tensor) -> None:
        """Go on with the pictures at `rows` alone."""
        self.memory = Memory(*(part[rows] for part in self.memory))
        self.state = self.state[rows]


@dataclass(frozen=True)
class TorchRegions(Regions):
    """Encoded pictures: the decoder's memory on the engine's device, feature and tags of `Seen` on the host."""

    memory: Memory
    feature: NDArray[np.float32]
    tags: NDArray[np.float32]

    def __len__(self) -> int:
        return self.memory.keys.shape[0]

    def select(self, rows: Sequence[int]) -> TorchRegions:
        index = list(rows)
        return TorchRegions(Memory(*(part[index] for part in self.memory)), self.feature[index], self.tags[index])

    @classmethod
    def join(cls, parts: Sequence[TorchRegions]) -> TorchRegions:
        memory = Memory(*map(torch.cat, zip(*(part.memory for part in parts), strict=True)))
        return cls(
            memory, *(np.concatenate(arrays) for arrays in zip(*((p.feature, p.tags) for p in parts), strict=True))
        )


class TorchEngine(CaptionEngine):
    """Runs a checkpoint's weights with torch."""

    name = "torch"

    def __init__(self, folder: Path, device: Device = "auto", threads: int = 0, precision: Precision = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable("CUDA was asked for, but torch sees no GPU; use --device cpu")
        torch.set_num_threads(threads or cpu_quota())
        torch.set_flush_denormal(True)
        checkpoint = open_checkpoint(folder)
        self.device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        self.config, self.vocabulary, self.card = checkpoint.config, checkpoint.vocabulary, checkpoint.metrics
        self.reranker, self.things = Reranker.of(checkpoint), thing_places(checkpoint)
        self._bf16 = self.device == "cuda" and precision == "auto"
        self.precision = "bf16" if self._bf16 else "f32"
        self._captioner = load_captioner(folder).to(self.device)
        self._captioner.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self._bf16)

    def encode(self, pixels: NDArray[np.uint8]) -> TorchRegions:
        with torch.inference_mode(), self._autocast():
            memory, *more = self._captioner.see(torch.tensor(pixels, device=self.device))
            return TorchRegions(memory, *(part.float().cpu().numpy() for part in more))

    def tags(self, regions: Regions) -> NDArray[np.float32]:
        assert isinstance(regions, TorchRegions)
        return regions.tags

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, TorchRegions)
        memory, wanted = regions.memory, search_config or self.config.search
        with torch.inference_mode(), self._autocast():
            stepper = TorchStepper(self._captioner.decoder, memory, self.config.temperature)
            found = find_hypotheses(stepper, self.candidates(wanted), self.constraints(wanted))
            found = self.ranked(found, regions.feature, regions.tags, wanted)
            details = self._details(memory, forced_words(found)) if explain else None
        return captions_of(found, self.vocabulary, self._captioner.decoder.gate_names, self._captioner.grid, details)

    def _details(self, memory: Memory, words: NDArray[np.int64]) -> StepDetails:
        """Run the found captions (B, N, T), start first, through the decoder again and keep what it looked at."""
        decoder = self._captioner.decoder
        ids = torch.from_numpy(words).to(self.device)
        state = decoder.initial_state(memory, ids.shape[1])
        log_probs, attention, gates = [], [], []
        for t in range(ids.shape[2]):
            out = decoder.step(memory, ids[:, :, t], state)
            state = out.state
            log_probs.append(decoder.log_probabilities(out.logits.float(), self.config.temperature))
            if out.attention is not None:
                attention.append(out.attention.float())
            gates.append(out.gates.float())
        log_probabilities, over_gates = (torch.stack(part, 2).cpu().numpy() for part in (log_probs, gates))
        looked = torch.stack(attention, 2).cpu().numpy() if attention else None
        return StepDetails(log_probabilities, looked, over_gates)
