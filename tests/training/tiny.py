"""A training run small enough for every test: drawn shapes, a random frozen encoder, a few steps an epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.captioner import Captioner
from model.config import DecoderConfig, EncoderConfig, ModelConfig, PreprocessConfig, SearchConfig
from model.vocabulary import Vocabulary
from tests.model.tiny import ENCODER
from tests.training.shapes import write_shapes
from training.config import Recipe, TrainConfig
from training.data import CaptionData, read

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
