"""Picture to the encoder's pixels: the same for training, evaluation and serving, and without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.config import PreprocessConfig


def to_pixels(image: Image.Image, config: PreprocessConfig, fast: bool = False) -> NDArray[np.uint8]:
    """Any picture -> (size, size, 3) uint8 RGB, the whole picture stretched to the square. fast: see `resize`.

    Stretched, not cropped: nothing at the edges is lost, and it is how the training pictures came.
    A picture of the right size passes unchanged. Alpha must have been composited before (`model.images`).
    """
    if image.mode != "RGB":
        image = image.convert("RGB")
    if (factor := reduction(*image.size, config.size)) > 1:
        image = image.reduce(factor)
    if image.size != (config.size, config.size):
        image = resize(image, config.size, fast)
    return np.asarray(image)


def resize(image: Image.Image, size: int, fast: bool = False) -> Image.Image:
    """RGB -> (size, size) by the cubic filter of Keys (1981, a = -0.5), widened where it shrinks.

    fast: by SIMD (fast_image_resize), in an eighth of the time. It rounds otherwise: some fifteen values in a hundred
    differ by a level, few by more.
    """
    if not fast:
        # reducing_gap: a side still far too long shrinks by a whole factor first; that differs by under a level.
        return image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer

    resized = Image.new("RGB", (size, size))
    Resizer().resize_pil(image, resized, ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom)))
    return resized


def reduction(width: int, height: int, size: int) -> int:
    """The power of two by which a picture is shrunk before it is resampled: both sides stay twice as long as needed.

    Each pixel becomes the mean of a square of them, which is also what a JPEG decoder computes that decodes at a
    fraction of the size. So a large photograph looks the same to the encoder however it was decoded.
    """
    spare = (min(width, height) - 1) // (2 * size - 1)  # a side that does not divide is rounded up
    return 1 << max(spare.bit_length() - 1, 0)


def normalise(pixels: NDArray[np.uint8], config: PreprocessConfig) -> NDArray[np.float32]:
    """(..., 3) uint8 -> (..., 3) float32, (x - mean) / std: what the encoder computes first (for tests)."""
    mean = np.asarray(config.mean, np.float32)
    std = np.asarray(config.std, np.float32)
    return (pixels.astype(np.float32) - mean) / std
