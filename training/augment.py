"""Changes to a picture that keep its captions true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.language.sides import Language


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Which changes; all off by default."""

    flip: bool = False  # mirror half of the pictures, with left and right swapped in their captions
    min_scale: float = 1.0  # crop to at least this share of the area, then stretch back
    jitter: float = 0.0  # brightness, contrast and saturation vary by up to this factor
    language: Language = "auto"  # of the captions; pictures for which no caption stays true are not mirrored


def augment(
    pixels: NDArray[np.uint8], rng: np.random.Generator, config: AugmentConfig
) -> tuple[NDArray[np.uint8], bool]:
    """(S, S, 3) uint8 -> a changed copy, and whether it was mirrored."""
    size = pixels.shape[0]
    if config.min_scale < 1:
        area, ratio = rng.uniform(config.min_scale, 1), np.exp(rng.uniform(-0.12, 0.12))
        width, height = min(1, np.sqrt(area * ratio)) * size, min(1, np.sqrt(area / ratio)) * size
        left, top = rng.uniform(0, size - width), rng.uniform(0, size - height)
        box = (left, top, left + width, top + height)
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=box))
    if config.jitter > 0:
        x = pixels.astype(np.float32)
        brightness, contrast, saturation = 1 + rng.uniform(-config.jitter, config.jitter, 3).astype(np.float32)
        mean = x.mean()
        grey = x.mean(-1, keepdims=True)
        x = grey + (x - grey) * saturation
        x = (mean + (x - mean) * contrast) * brightness
        pixels = np.clip(x + 0.5, 0, 255).astype(np.uint8)
    flipped = bool(config.flip and rng.random() < 0.5)
    return (pixels[:, ::-1] if flipped else pixels), flipped
