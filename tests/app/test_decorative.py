from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app.decorative import LEAST_EDGES, LEAST_STRUCTURE, is_decorative, measures
from model.config import PreprocessConfig
from model.preprocess import to_pixels
from tests.training.shapes import draw_pair

SAMPLE = Path(__file__).parents[2] / "app/static/sample.jpg"
ROWS, COLUMNS = np.mgrid[:480, :640].astype(np.float64)


def picture(values: NDArray[np.float64]) -> Image.Image:
    """(H, W) or (H, W, 3) grey levels -> a picture."""
    values = values if values.ndim == 3 else np.repeat(values[:, :, None], 3, 2)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def rule(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A bar on white."""
    image = Image.new("RGB", (width, height), "white")
    image.paste((40, 60, 90), box)
    return image


def noise(height: int, width: int, spread: float) -> Image.Image:
    """Every value drawn for itself."""
    return picture(128 + spread * np.random.default_rng(0).standard_normal((height, width, 3)))


SHOW_NOTHING = {
    "white": Image.new("RGB", (300, 200), "white"),
    "black": Image.new("RGB", (300, 200)),
    "one pixel": Image.new("RGB", (1, 1), (9, 99, 200)),
    "nearly blank": picture(250 + 2 * np.random.default_rng(0).standard_normal((300, 200, 3))),
    "gradient across": picture(COLUMNS / 3),
    "gradient aslant": picture((COLUMNS + ROWS) / 5),
    "gradient round": picture(255 - np.hypot(COLUMNS - 320, ROWS - 240) / 2),
    "two colours": picture(np.stack([COLUMNS / 3, 200 - COLUMNS / 4, ROWS / 2], 2)),
    "strong noise": noise(480, 640, 80),
    "faint noise": noise(1200, 1600, 10),
    "rule": rule(600, 20, (0, 9, 600, 11)),
    "short rule": rule(600, 100, (50, 49, 550, 51)),
    "thick rule": rule(600, 100, (100, 40, 500, 60)),
    "upright rule": rule(30, 600, (12, 40, 18, 560)),
    "stripes": picture(200.0 * (COLUMNS // 32 % 2)),
}


def prepared(image: Image.Image, size: int) -> NDArray[np.uint8]:
    return to_pixels(image, PreprocessConfig(size=size))


@pytest.mark.parametrize("size", [224, 240])
@pytest.mark.parametrize("name", SHOW_NOTHING)
def test_pictures_that_show_nothing_are_told(name: str, size: int) -> None:
    assert is_decorative(prepared(SHOW_NOTHING[name], size), *SHOW_NOTHING[name].size)


def small_in_the_sky() -> Image.Image:
    image = picture(150 + ROWS / 8)
    ImageDraw.Draw(image).polygon([(300, 220), (360, 200), (380, 210), (372, 228), (330, 232)], fill=(60, 60, 60))
    return image


def letters() -> Image.Image:
    image = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(image).text((30, 60), "Closed\non Monday", fill="black", font_size=60)
    return image


def swatch() -> Image.Image:
    return rule(300, 200, (100, 60, 180, 130))


@pytest.mark.parametrize("make", [small_in_the_sky, letters, lambda: Image.open(SAMPLE), swatch])
def test_pictures_that_show_something_are_not(make: object) -> None:
    assert callable(make)
    image = make()
    assert not is_decorative(prepared(image, 240), *image.size)


def test_drawn_scenes_are_far_from_it() -> None:
    for seed in range(40):
        edges, structure = measures(prepared(draw_pair(random.Random(seed), 320)[0], 240))
        assert edges > 2 * LEAST_EDGES
        assert structure > 2 * LEAST_STRUCTURE
