"""Several captioners that speak together: at every step of the search the mean of their probabilities.

What an ensemble is worth before it is distilled into one (`train.teacher_share`). Its members need nothing
in common but the vocabulary: each reads the pictures through its own encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.captioner import Captioner
from model.config import SearchConfig
from model.decoder import Memory
from model.errors import CheckpointError
from model.runtime.torch_engine import TorchStepper
from model.search import Stepper
from model.vocabulary import PAD
from training import features, objectives, validation
from training.augment import AugmentConfig
from training.config import TrainConfig
from training.data import Picture


class EnsembleStepper:
    """A `search.Stepper` over the steppers of several captioners for the same pictures."""

    def __init__(self, members: Sequence[TorchStepper]) -> None:
        self.members, self.batch = members, members[0].batch

    def start(self, hypotheses: int = 1) -> Tensor:
        """The start word of K equal hypotheses a picture, (B, K)."""
        first, *_ = [member.start(hypotheses) for member in self.members]
        return first

    def step(self, words: Tensor, parents: Tensor | None) -> Tensor:
        """Log of the members' mean probabilities, (B, K, V)."""
        return mean([member.step(words, parents) for member in self.members])

    def keep(self, rows: Tensor) -> None:
        """Go on with the pictures at `rows` alone."""
        for member in self.members:
            member.keep(rows)


def mean(log_probabilities: Sequence[Tensor]) -> Tensor:
    """Log-probabilities (..., V) of each member -> the log of their mean probabilities."""
    return torch.stack(list(log_probabilities)).logsumexp(0) - math.log(len(log_probabilities))


def likelihood_loss(members: Sequence[Captioner], memories: Sequence[Memory], words: Tensor) -> Tensor:
    """Cross-entropy a word of the mean probabilities: words (B, N, T + 1), start to end, padded."""
    inputs, targets = words[..., :-1], words[..., 1:]
    said = targets != PAD
    each = []
    for member, memory in zip(members, memories, strict=True):
        logits = member.decoder.logits(member.decoder.outputs(memory, inputs)[said]).float()
        each.append((logits / member.config.temperature).log_softmax(-1))
    return F.nll_loss(mean(each), targets[said])


def evaluate(
    members: Sequence[Captioner],
    pictures: Sequence[Picture],
    cache: Path,
    device: torch.device,
    search_config: SearchConfig,
    config: TrainConfig,
) -> validation.Evaluation:
    """`engine.evaluate` of what the members say together, each at its own temperature."""
    if len({member.vocabulary.words for member in members}) > 1:
        raise CheckpointError("captioners of different vocabularies have no mean")
    members = [member.to(device).eval() for member in members]
    stages = [features.before_head(member, len(member.encoder.stages)) for member in members]
    seen = [
        features.cached(member, count, pictures, 1, AugmentConfig(), cache, device, config.precision)
        for member, count in zip(members, stages, strict=True)
    ]

    def speak(rows: list[int], words: Tensor) -> tuple[Stepper, Tensor]:
        memories = [
            objectives.memory_of(member, its.batch(rows, [0] * len(rows), device), its.stages)
            for member, its in zip(members, seen, strict=True)
        ]
        steppers = [
            TorchStepper(member.decoder, memory, member.config.temperature)
            for member, memory in zip(members, memories, strict=True)
        ]
        return EnsembleStepper(steppers), likelihood_loss(members, memories, words)

    return validation.evaluate_with(speak, members[0].vocabulary, seen[0].pictures, device, search_config, config)
