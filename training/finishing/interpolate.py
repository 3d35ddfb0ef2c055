"""Between two checkpoints.

Weights part of the way from A to B, where B was trained on from A or both were from a third, are often
better than both: they keep what was learnt and lose some of what was learnt by heart (Wortsman et al.
2022, arXiv:2109.01903).
The share is chosen on validation pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.captioner import Captioner
from model.config import DecoderConfig
from model.errors import CheckpointError
from training import features, validation
from training.augment import AugmentConfig
from training.config import TrainConfig
from training.data import CaptionData
from training.initialisation import extended
from training.validation import score_of

log = logging.getLogger("training.interpolate")

SHARES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)


def between(a: Captioner, b: Captioner, share: float) -> Captioner:
    """A captioner with `share` of b's weights and the rest of a's; both must be of one shape and vocabulary."""
    if b.vocabulary.words[: len(a.vocabulary)] == a.vocabulary.words:
        a = extended(a, b.vocabulary)  # words that were learnt on the way
    if a.vocabulary.words != b.vocabulary.words or _sizes(a) != _sizes(b):
        raise CheckpointError("the two checkpoints differ in vocabulary or sizes; the second must come from the first")
    made = Captioner(b.config, b.vocabulary)
    theirs = b.state_dict()
    made.load_state_dict(
        {
            name: torch.lerp(mine, theirs[name], share) if mine.is_floating_point() else theirs[name]
            for name, mine in a.state_dict().items()
        }
    )
    return made.eval()


def _sizes(captioner: Captioner) -> DecoderConfig:
    return replace(captioner.config.decoder, dropout=0.0)  # which no weight depends on


def choose(
    a: Captioner, b: Captioner, data: CaptionData, cache: Path, shares: Sequence[float], weights: Mapping[str, float]
) -> tuple[Captioner, list[dict[str, Any]]]:
    """The captioner of the share with the best validation CIDEr, and what each share gave.

    weights: of the sets, as a recipe's `choose`; without any the first set decides.
    """
    config = TrainConfig()
    best: Captioner | None = None
    history: list[dict[str, Any]] = []
    for step, share in enumerate(shares, 1):
        captioner = between(a, b, share)
        stages = features.before_head(captioner, len(captioner.encoder.stages))
        val = features.cached(
            captioner, stages, data.split("val"), 1, AugmentConfig(), cache, torch.device("cpu"), config.precision
        )
        result = validation.evaluate(captioner, val, captioner.config.search, config)
        score = score_of(result, val.pictures, weights)
        if best is None or score > max(row["score"] for row in history):
            best = captioner
        history.append({"epoch": step, "share": share, **result.figures(), "score": score})
        log.info("%s", history[-1])
    assert best is not None
    return best, history
