from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.config import PreprocessConfig
from model.preprocess import normalise, reduction, to_pixels


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_a_picture_of_the_right_size_passes_unchanged(size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_pixels(Image.fromarray(pixels), PreprocessConfig(size=size)), pixels)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
def test_any_shape_becomes_a_square(width: int, height: int, size: int) -> None:
    pixels = to_pixels(Image.new("RGB", (width, height), (10, 200, 30)), PreprocessConfig(size=size))
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (10, 200, 30)).all()


@pytest.mark.parametrize("shape", [(400, 40), (40, 400), (37, 53)])
def test_the_whole_picture_is_stretched_and_nothing_cropped(shape: tuple[int, int]) -> None:
    picture = Image.new("RGB", shape, "red")
    picture.paste("blue", (0, 0, shape[0] // 2, shape[1]))
    picture.paste("white", (0, 0, shape[0], shape[1] // 4))
    pixels = to_pixels(picture, PreprocessConfig(size=32)).astype(int)
    assert (pixels[:4] > 240).all()  # the top quarter
    np.testing.assert_allclose(pixels[16:, :12], np.broadcast_to((0, 0, 255), (16, 12, 3)), atol=12)
    np.testing.assert_allclose(pixels[16:, 20:], np.broadcast_to((255, 0, 0), (16, 12, 3)), atol=12)


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [
        (1, 1, 1),
        (63, 63, 1),
        (64, 64, 1),
        (126, 999, 1),
        (127, 999, 2),
        (128, 128, 2),
        (252, 256, 2),
        (253, 300, 4),
        (2048, 1024, 16),
    ],
)
def test_a_large_picture_shrinks_by_a_power_of_two_to_no_less_than_twice_the_size(
    width: int, height: int, factor: int
) -> None:
    assert reduction(width, height, 32) == factor


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "F"])
@pytest.mark.parametrize("size", [16, 20])
def test_every_mode_becomes_rgb(mode: str, size: int) -> None:
    picture = (
        Image.new("L", (16, 16), 255).convert("RGB").convert(mode) if mode != "I;16" else Image.new("I;16", (16, 16))
    )
    pixels = to_pixels(picture, PreprocessConfig(size=size))
    assert pixels.shape == (size, size, 3)
    assert (pixels == (0 if mode == "I;16" else 255)).all()


def test_grey_stays_grey() -> None:
    pixels = to_pixels(Image.linear_gradient("L"), PreprocessConfig(size=64))
    assert (pixels == pixels[:, :, :1]).all()
    assert (np.diff(pixels[:, 0, 0].astype(int)) > 0).all()


def test_pixels_are_centred_and_scaled() -> None:
    config = PreprocessConfig(mean=(127.0, 100.0, 0.0), std=(128.0, 50.0, 255.0))
    values = normalise(np.array([[[127, 150, 255], [255, 0, 0]]], np.uint8), config)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [[[0, 1, 1], [1, -2, 0]]])


PHOTO_SHAPES = [(640, 480), (500, 375), (224, 224), (100, 80), (37, 53), (1, 1)]


@pytest.mark.parametrize("shape", PHOTO_SHAPES)
def test_resized_fast_a_picture_is_the_same_to_within_rounding(shape: tuple[int, int]) -> None:
    pytest.importorskip("cykooz_resizer")  # there is no wheel for Linux on ARM
    noise = np.random.default_rng(0).integers(0, 256, (shape[1] // 8 + 1, shape[0] // 8 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(shape, Image.Resampling.BICUBIC)
    config = PreprocessConfig(size=112)
    one, other = (to_pixels(picture, config, fast).astype(int) for fast in (False, True))
    assert abs(one - other).max() <= 8  # where one side's overshoot was cut off and the other's not
    assert (abs(one - other) <= 1).mean() > 0.99
    assert abs(one - other).mean() < 0.2
    assert (one != other).any() == (shape != (1, 1))
