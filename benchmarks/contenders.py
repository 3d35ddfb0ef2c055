"""Other ways of decoding that scripts/bench compares the engine with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import model.torchvision_compat  # noqa: F401  # before transformers, which imports torchvision
from benchmarks import WEIGHTS
from model.checkpoint import load_captioner
from model.config import SearchConfig
from model.vocabulary import END, START, sentence

from transformers import BlipConfig, BlipForConditionalGeneration  # isort: skip


class PythonBeam:
    """Beam search as tutorials write it: picture by picture, hypothesis by hypothesis, over lists, in torch."""

    def __init__(self, folder: Path = WEIGHTS) -> None:
        self.captioner = load_captioner(folder)

    def caption(self, pixels: NDArray[np.uint8], search_config: SearchConfig) -> list[str]:
        """(B, size, size, 3) uint8 -> B captions."""
        return [self._one(picture, search_config) for picture in pixels]

    @torch.inference_mode()
    def _one(self, picture: NDArray[np.uint8], search_config: SearchConfig) -> str:
        decoder = self.captioner.decoder
        memory = self.captioner.encode(torch.from_numpy(picture)[None])
        beams = [([START], 0.0, decoder.initial_state(memory, 1))]
        for _ in range(search_config.max_length + 1):
            candidates = []
            for words, score, state in beams:
                if words[-1] == END:
                    candidates.append((words, score, state))
                    continue
                out = decoder.step(memory, torch.tensor([[words[-1]]]), state)
                log_probs = decoder.log_probabilities(out.logits[0, 0], 1.0)
                for log_prob, word in zip(*log_probs.topk(search_config.beam_size), strict=True):
                    candidates.append(([*words, int(word)], score + float(log_prob), out.state))
            candidates.sort(key=lambda c: c[1] / (len(c[0]) - 1) ** search_config.length_penalty, reverse=True)
            beams = candidates[: search_config.beam_size]
            if all(words[-1] == END for words, _, _ in beams):
                break
        return sentence(self.captioner.vocabulary.written(beams[0][0]))


class Blip:
    """BLIP-base's architecture with random weights: how long it takes does not depend on their values."""

    def __init__(self) -> None:
        self.config = BlipConfig()
        self.model: Any = BlipForConditionalGeneration(self.config).eval()

    @torch.inference_mode()
    def caption(self, batch: int, tokens: int, beams: int) -> None:
        """Caption `batch` pictures with exactly `tokens` tokens each."""
        size = self.config.vision_config.image_size
        pixels = torch.zeros(batch, 3, size, size)
        self.model.generate(pixels, num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens)
