"""Honest confidence: the temperature of a checkpoint.

Logits are divided by one number, so that a probability of 0.7 is right seven times in ten (Guo et
al. 2017). The order of words, and so greedy decoding, stays the same. Measured by teacher forcing:
the words so far are a reference's, the next is the reference's or not.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from model.captioner import Captioner
from training.evaluation import confidence

LOWEST, HIGHEST = 0.25, 4.0  # temperatures searched


def fit_temperature(captioner: Captioner, outputs: Tensor, targets: Tensor) -> float:
    """The temperature whose probabilities best foretell whether the likeliest word is the reference's.

    That is what a caption's confidence says, so the log loss of just this yes or no is minimised (top-label
    calibration, Gupta & Ramdas 2022, arXiv:2107.08353), by golden-section search on the logarithm of the
    temperature. All words' likelihood would be another aim: label smoothing bends it by words never chosen.
    """

    def log_loss(log_temperature: float) -> float:
        p, right = confidence(captioner, outputs, targets, math.exp(log_temperature))
        return -float(np.log(np.where(right, p, 1 - p).clip(1e-6)).mean())

    low, high = math.log(LOWEST), math.log(HIGHEST)
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    loss_left, loss_right = log_loss(left), log_loss(right)
    while high - low > 0.005:
        if loss_left < loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - golden * (high - low)
            loss_left = log_loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + golden * (high - low)
            loss_right = log_loss(right)
    return round(math.exp((low + high) / 2), 3)
