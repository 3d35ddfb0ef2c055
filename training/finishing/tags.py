"""A head that says what a picture holds.

The tags are words of the captions: things, colours, actions. The head reads the features of the finished encoder,
which stays as it is, and learns which of the words people used of each picture.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.captioner import Captioner, TagHead
from model.vocabulary import SPECIAL, Vocabulary, words_of
from training import features
from training.augment import AugmentConfig
from training.data import CaptionData, DataError, Picture
from training.objectives import regions_of
from training.process import Precision
from training.scoring.failures import GRAMMAR
from training.scoring.metrics import expected_calibration_error
from training.scoring.objects import Objects

log = logging.getLogger("training.tags")

BATCH = 32  # pictures a step
RATE, WEIGHT_DECAY = 1e-3, 0.05


def give_tags(
    captioner: Captioner,
    data: CaptionData,
    most: int,
    least: int,
    objects: Path,
    epochs: int,
    views: int,
    augmentation: AugmentConfig,
    cache: Path,
    precision: Precision = "auto",
) -> dict[str, Any]:
    """Give `captioner` at most `most` tags, each said of `least` pictures, and a head for them.

    objects: the file of words that name things. Returns the epochs of `fit`, and the head's calibration error.
    """
    torch.manual_seed(0)
    device = next(captioner.parameters()).device
    tags = choose_tags(data.split("train"), captioner.vocabulary, most, least)
    log.info("%d tags, from %r to %r", len(tags), tags[0], tags[-1])
    stages = features.before_head(captioner, len(captioner.encoder.stages))
    train, val = (
        features.cached(captioner, stages, data.split(split), count, augmentation, cache, device, precision)
        for split, count in (("train", views), ("val", 1))
    )
    known = Objects(objects)
    things = tuple(tag for tag in tags if known.named(tag))
    captioner.config = replace(captioner.config, tags=tuple(tags), things=things)
    captioner.tags = TagHead(captioner.encoder.channels, len(tags)).to(device)
    history = fit(captioner, train, val, epochs, device)
    probabilities = predict(captioner, val, device).sigmoid().cpu().numpy()
    said = targets_of(val.pictures, tags)
    wrong, seen = expected_calibration_error(probabilities.ravel(), said.ravel()), sensitivity(probabilities, said)
    log.info("calibration error of the tags %.4f, sensitivity %.2f", wrong, seen)
    return {"history": history, "calibration_error": wrong, "sensitivity": seen}


def sensitivity(probabilities: NDArray[np.float32], said: NDArray[np.float32]) -> float:
    """d' of an observer with these probabilities (P, G) of words that were `said` or not (1, 0); nan where all were.

    Normal evidence has log-likelihood ratios of d'^2 / 2 and -d'^2 / 2 in the mean (Green and Swets 1966).
    """
    share = (said.sum(0) + 0.5) / (len(said) + 1)
    p = probabilities.astype(np.float64).clip(1e-7, 1 - 1e-7)
    ratio = np.log(p / (1 - p)) - np.log(share / (1 - share))
    if said.all() or not said.any():
        return float("nan")
    return float(max(ratio[said == 1].mean() - ratio[said == 0].mean(), 0.0) ** 0.5)


def choose_tags(pictures: Sequence[Picture], vocabulary: Vocabulary, most: int, least_pictures: int) -> list[str]:
    """At most `most` words of the vocabulary that say something, said of `least_pictures` pictures: commonest first."""
    known = set(vocabulary.words[len(SPECIAL) :]) - GRAMMAR
    counts: Counter[str] = Counter()
    for picture in pictures:
        counts.update({word for caption in picture.captions for word in words_of(caption)} & known)
    chosen = [word for word, count in counts.most_common() if count >= least_pictures][:most]
    if not chosen:
        raise DataError(f"no word is said of {least_pictures} pictures, so there are no tags to learn")
    return chosen


def targets_of(pictures: Sequence[Picture], tags: Sequence[str]) -> NDArray[np.float32]:
    """(P, G): 1 where some caption of the picture says the word."""
    place = {word: i for i, word in enumerate(tags)}
    targets = np.zeros((len(pictures), len(tags)), np.float32)
    for row, picture in zip(targets, pictures, strict=True):
        row[[place[word] for caption in picture.captions for word in words_of(caption) if word in place]] = 1
    return targets


def fit(
    captioner: Captioner,
    train: features.Features,
    val: features.Features,
    epochs: int,
    device: torch.device,
) -> list[dict[str, float]]:
    """Fit the head for tags to what the captions of `train` say, keep the epoch best on `val`, then calibrate it there.

    Returns each epoch's losses (cross-entropy a tag) and mean average precision of the validation pictures (percent);
    its score is what the best one has most of.
    """
    head, tags = captioner.tags, captioner.config.tags
    assert head is not None
    targets = torch.from_numpy(targets_of(train.pictures, tags)).to(device)
    wanted = torch.from_numpy(targets_of(val.pictures, tags)).to(device)
    _say_shares(head, targets.mean(0))
    optimizer = torch.optim.AdamW(
        [
            {"params": [head.region.weight, head.whole.weight], "weight_decay": WEIGHT_DECAY},
            {"params": [head.region.bias, head.whole.bias], "weight_decay": 0.0},
        ],
        RATE,
    )
    steps = epochs * -(-len(targets) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(0)
    history: list[dict[str, float]] = []
    best = {name: value.clone() for name, value in head.state_dict().items()}
    for epoch in range(epochs):
        head.train()
        total, order = 0.0, rng.permutation(len(targets))
        views = rng.integers(train.data.shape[1], size=len(order))
        for rows in np.array_split(order, -(-len(order) // BATCH)):
            x = _regions(captioner, train, rows.tolist(), views[rows].tolist(), device)
            loss = F.binary_cross_entropy_with_logits(head(F.dropout(x, 0.3)), targets[rows], reduction="sum")
            optimizer.zero_grad()
            (loss / len(rows) / 10).backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        logits = predict(captioner, val, device)
        loss_there = float(F.binary_cross_entropy_with_logits(logits, wanted))
        figures = {
            "epoch": epoch + 1,
            "train_loss": total / targets.numel(),
            "val_loss": loss_there,
            "val_map": mean_average_precision(logits.cpu().numpy(), wanted.cpu().numpy()),
            "score": -loss_there,
        }
        log.info("%s", figures)
        if not history or figures["score"] > max(past["score"] for past in history):
            best = {name: value.clone() for name, value in head.state_dict().items()}
        history.append(figures)
    head.load_state_dict(best)
    slope, shift = platt(predict(captioner, val, device), wanted)
    with torch.no_grad():
        head.slope.fill_(slope)
        head.shift.fill_(shift)
    return history


@torch.no_grad()
def _say_shares(head: TagHead, shares: Tensor) -> None:
    """Let a fresh head begin with how often each word is said, (G,), whatever it sees."""
    head.whole.bias.copy_(torch.logit(shares.clamp(1e-4, 1 - 1e-4)))
    for layer in (head.region, head.whole):
        layer.weight.mul_(0.1)
    head.region.bias.zero_()


@torch.inference_mode()
def predict(captioner: Captioner, pictures: features.Features, device: torch.device) -> Tensor:
    """Logits (P, G) of pictures as they are."""
    head = captioner.tags
    assert head is not None
    head.eval()
    starts = range(0, len(pictures.pictures), BATCH)
    batches = [list(range(start, min(start + BATCH, len(pictures.pictures)))) for start in starts]
    return torch.cat([head(_regions(captioner, pictures, rows, [0] * len(rows), device)) for rows in batches])


@torch.no_grad()
def _regions(
    captioner: Captioner, pictures: features.Features, rows: list[int], views: list[int], device: torch.device
) -> Tensor:
    return regions_of(captioner, pictures.batch(rows, views, device), pictures.stages)


def platt(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """The slope and shift of logits with the least cross-entropy (Platt 1999)."""
    line = torch.tensor([1.0, 0.0], device=logits.device, requires_grad=True)
    logits = logits.clone()  # not an inference tensor
    optimizer = torch.optim.LBFGS([line], max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(line[0] * logits + line[1], targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(line[0].detach()), float(line[1].detach())


def mean_average_precision(scores: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """Percent: the mean over tags that occur of the average precision of a ranking of the pictures by score (P, G)."""
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(targets, order, 0)
    precision = np.cumsum(hits, 0) / np.arange(1, len(hits) + 1)[:, None]
    occurs = targets.sum(0) > 0
    return 100 * float(((precision * hits).sum(0)[occurs] / targets.sum(0)[occurs]).mean())
