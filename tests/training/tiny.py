"""A training run small enough for every test: drawn shapes, a random frozen encoder, a few steps an epoch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.captioner import Captioner
from model.checkpoint import save_captioner
from model.config import DecoderConfig, EncoderConfig, ModelConfig, PreprocessConfig, RerankConfig, SearchConfig
from model.vocabulary import Vocabulary
from tests.model.tiny import ENCODER
from tests.training.shapes import write_shapes
from training.augment import AugmentConfig
from training.config import Recipe, TrainConfig
from training.data import CaptionData, Picture, read
from training.features import Features
from training.parts import pack

CPU = torch.device("cpu")


def recipe(**train: Any) -> Recipe:
    """3 batches an epoch, 2 epochs."""
    return Recipe(
        name="tiny",
        model=ModelConfig(
            name="tiny",
            preprocess=PreprocessConfig(size=32),
            encoder=EncoderConfig(ENCODER),
            decoder=DecoderConfig(embed_size=8, hidden_size=16, dropout=0.2),
            search=SearchConfig(beam_size=2, max_length=9),
        ),
        encoder_weights="none",
        min_count=1,
        train=replace(
            TrainConfig(
                epochs=2,
                batch_size=8,
                captions_per_picture=2,
                learning_rate=1e-2,
                warmup=2,
                precision="fp32",
                average=0.9,
            ),
            **train,
        ),
    )


def shapes(folder: Path, train: int = 22, val: int = 6) -> CaptionData:
    """The drawn shapes, 22 pictures to train on."""
    return read(write_shapes(folder / "shapes", train=train, val=val, test=4, size=32))


def captioner(data: CaptionData, of: Recipe | None = None) -> Captioner:
    """A fresh captioner that knows the words of `data`, mirrored ones too."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(("left right", *(c for p in data.pictures for c in p.captions)), 1)
    return Captioner((of or recipe()).model, vocabulary)


def feature_set(captions: Sequence[Sequence[str]], views: int = 1, pixels: bool = False) -> Features:
    """Features of pictures with these captions; row r, view v is filled with r + v / 10."""
    count = len(captions)
    if pixels:
        data: np.ndarray = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8, 3), dtype=np.uint8)
    else:
        data = np.arange(count)[:, None] + np.arange(views)[None] / 10
        data = np.broadcast_to(data[:, :, None, None, None], (count, views, 1280, 1, 1)).astype(np.float16)
    flipped = np.zeros((count, views), np.bool_)
    flipped[:, 1::2] = True
    pictures = tuple(
        Picture(f"{i}.png", tuple(mine), "train", "shapes" if i % 2 else "others", Path("none"))
        for i, mine in enumerate(captions)
    )
    return Features(data, flipped, pictures, (), 9)


def as_released(data: CaptionData, folder: Path) -> Captioner:
    """A checkpoint with all that a release is fitted with at its end."""
    made = captioner(data)
    tags = made.vocabulary.words[4:9]
    config = replace(made.config, tags=tags, things=tags[:2], rerank=RerankConfig(size=3), review_below=0.4)
    released = Captioner(config, made.vocabulary)
    assert released.tags is not None
    torch.nn.init.constant_(released.tags.slope, 1.5)
    save_captioner(released, folder, {})
    return released


def pair(folder: Path) -> tuple[Captioner, Captioner]:
    """Two captioners that know the shapes in `folder`, one not far from the other."""
    a = captioner(shapes(folder))
    b = copy.deepcopy(a)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return a, b


def packed(data: CaptionData, folder: Path, part_bytes: int = 100_000) -> int:
    """Parts of `data` in `folder` (`training.parts`); how many."""
    pictures = data.required("train") + data.split("val")
    of = replace(recipe(), augment=AugmentConfig(flip=True, min_scale=0.6, jitter=0.2))
    return pack(pictures, of, captioner(data), folder, part_bytes)
