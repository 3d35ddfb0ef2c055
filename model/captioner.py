"""Encoder and decoder together: the torch module that training fits and export turns into graphs."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from model import encoder as encoders
from model.config import ModelConfig
from model.decoder import Decoder, Memory
from model.vocabulary import Vocabulary


class Captioner(nn.Module):
    """A whole captioner with the vocabulary it was built for."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, encoder_weights: str | Path | None = None) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoder = encoders.build(config.encoder, encoder_weights)
        size = config.preprocess.size
        self.grid = _grid(self.encoder, size)
        self.decoder = Decoder(config.decoder, self.encoder.channels, self.grid[0] * self.grid[1], len(vocabulary))
        self.register_buffer("mean", torch.tensor(config.preprocess.mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.preprocess.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, 3, S, S), the encoder's input."""
        # Row by row, because three channels are too few for vector instructions.
        S = pixels.shape[2]
        rows = (pixels.flatten(2).to(self.mean.dtype) - self.mean.repeat(S)) / self.std.repeat(S)
        return rows.view_as(pixels).permute(0, 3, 1, 2)

    def encode(self, pixels: Tensor) -> Memory:
        """(B, S, S, 3) uint8 pictures -> what the decoder needs of them."""
        return self.decoder.memory(self.encoder(self.normalise(pixels)))

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        """Pictures and N captions each (B, N, T), teacher-forced -> logits (B, N, T, V)."""
        logits: Tensor = self.decoder(self.encode(pixels), words)
        return logits


def _grid(encoder: encoders.Encoder, size: int) -> tuple[int, int]:
    """Rows and columns of the feature grid for pictures of `size` pixels (run on the meta device: no work)."""
    with torch.no_grad():
        shape = copy.deepcopy(encoder.stages).to("meta").eval()(torch.empty(1, 3, size, size, device="meta")).shape
    return int(shape[-2]), int(shape[-1])
