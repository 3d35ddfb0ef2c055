"""Captioners small enough for every test, that still tell pictures apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model import encoder
from model.captioner import Captioner
from model.config import DecoderConfig, EncoderConfig, ModelConfig, PreprocessConfig, SearchConfig
from model.decoder import Decoder, LikelyTags, Memory
from model.vocabulary import SPECIAL, Vocabulary

WORDS = "a an the two red green blue white black dog cat man woman ball runs jumps sits plays on in with grass water"
VOCABULARY = Vocabulary((*SPECIAL, *WORDS.split(" ")))
SIZE = 64  # pixels: a grid of 2 x 2 regions
# EfficientNet-Lite with a quarter of lite0's channels and half its blocks: of most tests the time would go into making,
# saving, hashing, tracing and compiling the encoder.
ENCODER = "efficientnet_lite_tiny"
encoder._LITE_SCALES[ENCODER] = 0.25, 0.5


def pictures(count: int, seed: int = 0, size: int = SIZE) -> NDArray[np.uint8]:
    """Coloured blots on coloured grounds, (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    made = np.empty((count, size, size, 3), np.uint8)
    rows, columns = np.mgrid[:size, :size]
    for picture in made:
        picture[:] = rng.integers(0, 256, 3)
        for _ in range(3):
            y, x, radius = *rng.uniform(0, size, 2), rng.uniform(size / 10, size / 3)
            picture[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = rng.integers(0, 256, 3)
    return made


TAGS = ("dog", "cat", "man", "ball", "grass", "red", "runs")


def captioner(seed: int = 0, vocabulary: Vocabulary = VOCABULARY, imagenet: bool = False, **decoder: Any) -> Captioner:
    """A random captioner, in eval mode; its captions differ from picture to picture.

    It has tags where its decoder looks at them.

    imagenet: with EfficientNet-Lite0 as ImageNet taught it, where it matters what a trained encoder bears.
    """
    torch.manual_seed(seed)
    config = ModelConfig(
        name="tiny",
        version="7",
        preprocess=PreprocessConfig(size=SIZE),
        encoder=EncoderConfig("efficientnet_lite0" if imagenet else ENCODER),
        decoder=replace(DecoderConfig(embed_size=16, hidden_size=32), **decoder),
        search=SearchConfig(max_length=8),
        tags=TAGS if decoder.get("tag_slots") else (),
        temperature=1.25,
    )
    made = Captioner(config, vocabulary, "imagenet" if imagenet else None)
    if not imagenet:
        made.encoder.load_state_dict(_encoder_weights())
    with torch.no_grad():
        liven(made.decoder)
        if made.tags is not None:
            made.tags.whole.weight.mul_(20)  # surer of some than of others
    return made.eval()


@cache
def _encoder_weights() -> Mapping[str, Tensor]:
    """Random, but what its batch norms expect is what they get: or rounding errors would grow from layer to layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = encoder.build(EncoderConfig(ENCODER)).train()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            made(torch.from_numpy(pictures(64)).permute(0, 3, 1, 2).float() / 64 - 2)
    return made.state_dict()


def decoder(seed: int = 0, channels: int = 6, regions: int = 5, vocabulary: int = 12, **config: Any) -> Decoder:
    """A decoder with random weights, in eval mode."""
    torch.manual_seed(seed)
    made = Decoder(
        replace(DecoderConfig(embed_size=8, hidden_size=16, attention_heads=2), **config), channels, regions, vocabulary
    )
    with torch.no_grad():
        liven(made)
    return made.eval()


def liven(decoder: Decoder) -> None:
    """Larger random weights: fresh ones say nearly the same of every picture."""
    for name, parameter in decoder.named_parameters():
        if "peep" in name or name in ("position", "output_bias"):
            parameter.normal_(std=0.5)
        elif parameter.ndim > 1:
            parameter.mul_(3)


def memory(decoder: Decoder, batch: int, seed: int = 0) -> Memory:
    """The memory of random region features."""
    generator = torch.Generator().manual_seed(seed)
    regions = decoder.position.shape[0] if decoder.attends else 5
    features = torch.randn(batch, regions, decoder.region.in_features, generator=generator)
    slots, V = decoder.config.tag_slots, len(decoder.embedding.weight)
    shape = batch, slots
    tags = LikelyTags(torch.randint(4, V, shape, generator=generator), torch.rand(shape, generator=generator))
    with torch.no_grad():
        return decoder.memory(features, tags if slots else None)
