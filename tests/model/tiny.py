"""Captioners small enough for every test, that still tell pictures apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.captioner import Captioner
from model.config import DecoderConfig, EncoderConfig, ModelConfig, PreprocessConfig, SearchConfig
from model.decoder import Decoder, LikelyTags, Memory
from model.vocabulary import SPECIAL, Vocabulary

WORDS = "a an the two red green blue white black dog cat man woman ball runs jumps sits plays on in with grass water"
VOCABULARY = Vocabulary((*SPECIAL, *WORDS.split(" ")))
SIZE = 64  # pixels: a grid of 2 x 2 regions


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


def captioner(seed: int = 0, **decoder: Any) -> Captioner:
    """A captioner with a random decoder, in eval mode; its captions differ from picture to picture.

    It has tags where its decoder looks at them.

    The encoder is ImageNet's: a deep random one blows rounding errors up.
    """
    torch.manual_seed(seed)
    config = ModelConfig(
        name="tiny",
        version="7",
        preprocess=PreprocessConfig(size=SIZE),
        encoder=EncoderConfig("efficientnet_lite0"),
        decoder=replace(DecoderConfig(embed_size=16, hidden_size=32), **decoder),
        search=SearchConfig(max_length=8),
        tags=TAGS if decoder.get("tag_slots") else (),
        temperature=1.25,
    )
    made = Captioner(config, VOCABULARY, "imagenet")
    with torch.no_grad():
        liven(made.decoder)
        if made.tags is not None:
            made.tags.whole.weight.mul_(20)  # surer of some than of others
    return made.eval()


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
