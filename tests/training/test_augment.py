from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.augment import AugmentConfig, augment

seeds = st.integers(0, 2**31)


def picture(seed: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@given(seeds)
def test_nothing_changes_by_default(seed: int) -> None:
    pixels, flipped = augment(picture(seed), np.random.default_rng(seed), AugmentConfig())
    assert not flipped
    np.testing.assert_array_equal(pixels, picture(seed))


@settings(max_examples=40, deadline=None)
@given(seeds, st.booleans(), st.floats(0.3, 1), st.floats(0, 0.9, allow_subnormal=False))
def test_size_and_type_stay_and_the_seed_decides(seed: int, flip: bool, min_scale: float, jitter: float) -> None:
    config, original = AugmentConfig(flip, min_scale, jitter), picture(seed)
    pixels, flipped = augment(original, np.random.default_rng(seed), config)
    assert (pixels.shape, pixels.dtype) == (original.shape, np.uint8)
    again, same = augment(original, np.random.default_rng(seed), config)
    np.testing.assert_array_equal(pixels, again)
    assert flipped == same
    np.testing.assert_array_equal(original, picture(seed))  # the original is not touched


def test_half_are_mirrored() -> None:
    count = 0
    for seed in range(200):
        pixels, flipped = augment(picture(seed), np.random.default_rng(seed), AugmentConfig(flip=True))
        np.testing.assert_array_equal(pixels, picture(seed)[:, ::-1] if flipped else picture(seed))
        count += flipped
    assert 70 < count < 130


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0.3, 0.95))
def test_a_crop_keeps_its_share_and_is_stretched_back(seed: int, min_scale: float) -> None:
    """On a ramp from left to right the values left over tell which part was cropped."""
    ramp = np.broadcast_to(np.linspace(0, 255, 100)[None, :, None], (100, 100, 3)).astype(np.uint8)
    kept = []
    for axis in (0, 1):
        pixels, _ = augment(
            np.ascontiguousarray(ramp.swapaxes(0, 1) if axis else ramp),
            np.random.default_rng(seed),
            AugmentConfig(min_scale=min_scale),
        )
        kept.append((int(pixels.max()) - int(pixels.min())) / 255)
    assert min_scale - 0.06 <= kept[0] * kept[1] <= 1


@pytest.mark.parametrize("jitter", [0.1, 0.4])
def test_jitter_keeps_grey_grey_and_within_the_factor(jitter: float) -> None:
    seen = set()
    for seed in range(30):
        pixels, _ = augment(
            np.full((4, 4, 3), 100, np.uint8), np.random.default_rng(seed), AugmentConfig(jitter=jitter)
        )
        assert (pixels == pixels[0, 0, 0]).all()
        assert 100 * (1 - jitter) - 1 <= pixels[0, 0, 0] <= 100 * (1 + jitter) + 1
        seen.add(int(pixels[0, 0, 0]))
    assert len(seen) > 5
