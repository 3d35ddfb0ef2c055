"""Honest confidence: the temperature of a checkpoint.

Logits are divided by one number, so that a probability of 0.7 is right seven times in ten (Guo et
al. 2017). The order of words, and so greedy decoding, stays the same. Measured by teacher forcing:
the words so far are a reference's, the next is the reference's or not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model import preprocess
from model.captioner import Captioner
from model.vocabulary import PAD
from training.batching import padded
from training.data import DataError, Picture

log = logging.getLogger("training.calibrate")

LOWEST, HIGHEST = 0.25, 4.0  # temperatures searched


@torch.inference_mode()
def teacher_force(captioner: Captioner, pictures: Sequence[Picture], batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """What the decoder outputs before each reference word, (N, E), and those words' ids, (N,).

    All references of all pictures; ends included. Words that the vocabulary lacks are `UNKNOWN`.
    Pictures that cannot be decoded are left out and counted in a warning; `DataError` where none can.
    """
    captioner.eval()
    device = next(captioner.parameters()).device
    outputs, targets, broken = [], [], 0
    for start in tqdm(range(0, len(pictures), batch_size), "teacher forcing", unit="batch", leave=False):
        pixels, ids = [], []
        for picture in pictures[start : start + batch_size]:
            try:
                pixels.append(preprocess.to_pixels(picture.open(), captioner.config.preprocess))
            except DataError as error:
                log.warning("skipped: %s", error)
                broken += 1
                continue
            ids.append([captioner.vocabulary.encode(c) for c in picture.captions])
        if not ids:
            continue
        most = max(map(len, ids))
        words = padded([[*mine, *[[]] * (most - len(mine))] for mine in ids])
        for mine, real in zip(words, ids, strict=True):
            mine[len(real) :] = PAD  # the filling of pictures with fewer captions
        words = words.to(device)
        said = words[..., 1:] != PAD
        memory = captioner.encode(torch.from_numpy(np.stack(pixels)).to(device))
        outputs.append(captioner.decoder.outputs(memory, words[..., :-1])[said])
        targets.append(words[..., 1:][said])
    if broken:
        log.warning("%d of %d pictures cannot be decoded and were skipped", broken, len(pictures))
    if not outputs:
        raise DataError("not one picture could be decoded")
    return torch.cat(outputs), torch.cat(targets)


@torch.inference_mode()
def confidence(
    captioner: Captioner, outputs: Tensor, targets: Tensor, temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The probability of the word thought most likely, (N,), and whether it is the reference's, (N,)."""
    probabilities, right = [], []
    for some, wanted in zip(outputs.split(4096), targets.split(4096), strict=True):
        log_probability, word = captioner.decoder.log_probabilities(
            captioner.decoder.logits(some), temperature
        ).max(-1)  # fmt: skip
        probabilities.append(log_probability.exp().float().cpu().numpy())
        right.append((word == wanted).cpu().numpy())
    return np.concatenate(probabilities), np.concatenate(right)


def fit_temperature(captioner: Captioner, outputs: Tensor, targets: Tensor) -> float:
    """The temperature whose probabilities best foretell whether the likeliest word is the reference's.

    That is what a caption's confidence says, so the log loss of just this yes or no is minimised (top-label
    calibration, Gupta & Ramdas 2022, arXiv:2107.08353), by golden-section search on the logarithm of the
    temperature. All words' likelihood would be another aim: label smoothing bends it by words never chosen.
    """

    def surprise(log_temperature: float) -> float:
        p, right = confidence(captioner, outputs, targets, math.exp(log_temperature))
        return -float(np.log(np.where(right, p, 1 - p).clip(1e-6)).mean())

    low, high = math.log(LOWEST), math.log(HIGHEST)
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = surprise(left), surprise(right)
    while high - low > 0.005:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = surprise(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = surprise(right)
    return round(math.exp((low + high) / 2), 3)
