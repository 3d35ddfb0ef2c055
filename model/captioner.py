"""Encoder and decoder together: the torch module that training fits and export turns into graphs."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import encoder as encoders
from model.config import EncoderConfig, ModelConfig
from model.decoder import Decoder, LikelyTags, Memory
from model.errors import ConfigError
from model.vocabulary import UNKNOWN, Vocabulary


class Seen(NamedTuple):
    """What is known of B pictures before a word is said.

    memory: for the decoder. feature: (B, d), what similar pictures are found by. tags: (B, G), probabilities that
    people would use each of the tags' words. Without them d or G is 0.
    """

    memory: Memory
    feature: Tensor
    tags: Tensor


class TagHead(nn.Module):
    """Region features -> how likely people use each of G words of the picture.

    A thing is seen where it is: each region has a say, and the mean of their exponentials (a soft maximum, as
    multiple-instance learning asks for, Fang et al. 2015, arXiv:1411.4952) is joined by what the whole picture says.
    slope and shift are fitted on validation pictures, so that probabilities are calibrated (Platt 1999).
    """

    def __init__(self, channels: int, tags: int) -> None:
        super().__init__()
        self.region = nn.Linear(channels, tags)
        self.whole = nn.Linear(channels, tags)
        self.slope = nn.Parameter(torch.ones(()), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, D) -> logits (B, G)."""
        regions: Tensor = self.region(features)  # (B, L, G)
        logits: Tensor = regions.logsumexp(1) - math.log(features.shape[1]) + self.whole(features.mean(1))
        return self.slope * logits + self.shift


class Captioner(nn.Module):
    """A whole captioner with the vocabulary it was built for."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, encoder_weights: str | Path | None = None) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoder = encoders.build(config.encoder, encoder_weights)
        size = config.preprocess.size
        self.grid = _grid(config.encoder, size, self.encoder)
        self.decoder = Decoder(config.decoder, self.encoder.channels, self.grid[0] * self.grid[1], len(vocabulary))
        self.tags = TagHead(self.encoder.channels, len(config.tags)) if config.tags else None
        self.slots, known = config.decoder.tag_slots, {word: i for i, word in enumerate(vocabulary.words)}
        if self.slots > len(config.tags):
            raise ConfigError(
                f"tag_slots is {self.slots}, of {len(config.tags)} tags; it takes a checkpoint that has been given as "
                "many (training.commands.tags)"
            )
        words = torch.tensor([known.get(tag, UNKNOWN) for tag in config.tags], dtype=torch.int64)
        self.register_buffer("tag_words", words, persistent=False)
        self.tag_words: Tensor
        size = config.rerank.size
        self.feature = nn.Linear(self.encoder.channels, size) if size else None
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
        return self.memory(self.encoder(self.normalise(pixels)))

    def memory(self, features: Tensor) -> Memory:
        """What the encoder makes of pictures, (B, L, D) -> what the decoder needs of them."""
        return self.decoder.memory(features, self.likely(self._tags(features)) if self.slots else None)

    def _tags(self, features: Tensor) -> Tensor:
        """(B, L, D) -> (B, G), as `Seen` has them."""
        return features.new_zeros(len(features), 0) if self.tags is None else self.tags(features).sigmoid()

    def likely(self, tags: Tensor) -> LikelyTags:
        """Those tags of all (B, G) that the decoder has places for."""
        probabilities, places = tags.topk(self.slots)
        return LikelyTags(self.tag_words[places], probabilities)

    def see(self, pixels: Tensor) -> Seen:
        """(B, S, S, 3) uint8 pictures -> all that is known of them."""
        x = self.encoder(self.normalise(pixels))  # (B, L, D)
        tags = self._tags(x)
        return Seen(
            self.decoder.memory(x, self.likely(tags) if self.slots else None),
            x.new_zeros(len(x), 0) if self.feature is None else F.normalize(self.feature(x.mean(1)), dim=-1),
            tags,
        )

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        """Pictures and N captions each (B, N, T), teacher-forced -> logits (B, N, T, V)."""
        logits: Tensor = self.decoder(self.encode(pixels), words)
        return logits


_GRIDS: dict[tuple[EncoderConfig, int], tuple[int, int]] = {}


def _grid(config: EncoderConfig, size: int, encoder: encoders.Encoder) -> tuple[int, int]:
    """Rows and columns of the feature grid for pictures of `size` pixels."""
    if (config, size) not in _GRIDS:
        with torch.no_grad():  # on the meta device, which computes shapes alone
            shape = copy.deepcopy(encoder.stages).to("meta").eval()(torch.empty(1, 3, size, size, device="meta")).shape
        _GRIDS[config, size] = int(shape[-2]), int(shape[-1])
    return _GRIDS[config, size]
