from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import preprocess
from model.captioner import Captioner
from model.config import PreprocessConfig
from tests.training import tiny
from training import features
from training.augment import AugmentConfig, augment
from training.data import CaptionData, DataError, Picture
from training.features import Features, cached

FLIPS = AugmentConfig(flip=True, min_scale=0.8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def captioner(data: CaptionData) -> Captioner:
    return tiny.captioner(data)


def compute(
    captioner: Captioner, pictures: list[Picture], cache: Path, frozen: int = 4, views: int = 1,
    augmentation: AugmentConfig = FLIPS, precision: str = "fp32",
) -> Features:  # fmt: skip
    return cached(captioner, frozen, pictures, views, augmentation, cache, tiny.CPU, precision)


def test_it_is_what_leaves_the_frozen_stages(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    pictures = data.split("val")
    found = compute(captioner, pictures, tmp_path, frozen=4, views=1)
    pixels = np.stack([preprocess.to_pixels(p.open(), captioner.config.preprocess) for p in pictures])
    with torch.no_grad():
        expected = captioner.encoder.eval().stages[:4](captioner.normalise(torch.from_numpy(pixels)))
    assert found.pictures == tuple(pictures)
    assert not found.broken
    assert not found.flipped.any()
    assert found.data.dtype == np.float16
    torch.testing.assert_close(found.batch(range(6), [0] * 6, tiny.CPU).float(), expected, atol=1e-2, rtol=1e-2)


def test_views_are_augmented_by_name_and_number(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    pictures = data.split("train")
    found = compute(captioner, pictures, tmp_path, views=3)
    assert found.data.shape[:2] == (22, 3)
    assert not found.flipped[:, 0].any()
    assert 5 < found.flipped[:, 1:].sum() < 39
    assert not np.array_equal(found.data[0, 1], found.data[0, 2])
    # A picture's views do not depend on its neighbours.
    fewer = compute(captioner, pictures[5:], tmp_path, views=3)
    np.testing.assert_array_equal(fewer.flipped, found.flipped[5:])
    np.testing.assert_allclose(fewer.data, found.data[5:], atol=1e-2)


def test_with_every_stage_trained_the_pixels_are_kept(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    pictures = data.split("val")
    found = compute(captioner, pictures, tmp_path, frozen=0, views=3)
    assert (found.data.dtype, found.data.shape) == (np.uint8, (6, 1, 32, 32, 3))
    for row, picture in zip(found.data, pictures, strict=True):
        np.testing.assert_array_equal(row[0], np.asarray(picture.open()))


def test_computed_once(
    captioner: Captioner, data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compute(captioner, data.split("val"), tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(features, "_compute", never)
    again = compute(captioner, data.split("val"), tmp_path)
    np.testing.assert_array_equal(first.data, again.data)
    assert again.pictures == first.pictures


@pytest.mark.parametrize(
    "change",
    [
        lambda c, p, kw: kw.update(frozen=3),
        lambda c, p, kw: kw.update(views=2),
        lambda c, p, kw: kw.update(precision="bf16"),
        lambda c, p, kw: p.pop(),
        lambda c, p, kw: p.reverse(),
        lambda c, p, kw: setattr(c, "config", replace(c.config, preprocess=PreprocessConfig(size=32, mean=(1, 2, 3)))),
        lambda c, p, kw: c.encoder.stages[0][1][0].weight.data.add_(1e-3),
        lambda c, p, kw: c.encoder.stages[0][1][1].running_mean.add_(1e-3),
    ],
)
def test_another_setting_has_another_place(
    change: Callable[[Captioner, list[Picture], dict[str, Any]], object], data: CaptionData, tmp_path: Path
) -> None:
    captioner, pictures = tiny.captioner(data), data.split("val")
    settings: dict[str, Any] = {"frozen": 2}
    compute(captioner, pictures, tmp_path, **settings)
    compute(captioner, pictures, tmp_path, **settings)
    assert len(list(tmp_path.iterdir())) == 1
    change(captioner, pictures, settings)
    compute(captioner, pictures, tmp_path, **settings)
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_that_come_later_do_not_matter(data: CaptionData, tmp_path: Path) -> None:
    captioner = tiny.captioner(data)
    compute(captioner, data.split("val"), tmp_path, frozen=2)
    captioner.encoder.stages[2][0].layers[0][0].weight.data.add_(1)
    captioner.decoder.output_bias.data.add_(1)
    compute(captioner, data.split("val"), tmp_path, frozen=2)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_augmentation_matters_where_it_is_used(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    for views, expected in ((1, 1), (2, 3)):  # one view: the same place; two: one for each augmentation
        for augmentation in (FLIPS, AugmentConfig(flip=True)):
            compute(captioner, data.split("val"), tmp_path, frozen=2, views=views, augmentation=augmentation)
        assert len(list(tmp_path.iterdir())) == expected


def test_broken_pictures_are_left_out_and_counted(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    """Also where another set has a sound picture of the same name."""
    sound = data.split("val")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG but no more")
    pictures = [
        replace(sound[0], path=bad, size=bad.stat().st_size),
        *sound[:3],
        replace(sound[3], path=tmp_path / "gone.png"),
        *sound[3:],
    ]
    for _ in range(2):  # computed, then from the cache
        found = compute(captioner, pictures, tmp_path / "cache", views=2)
        assert found.pictures == tuple(sound)
        assert found.broken == (pictures[0], pictures[4])
        expected = compute(captioner, sound, tmp_path / "cache", views=2)
        np.testing.assert_allclose(found.data[:6], expected.data, atol=1e-2)
        np.testing.assert_array_equal(found.flipped[:6], expected.flipped)


def test_without_a_sound_picture_there_is_a_clear_error(
    captioner: Captioner, data: CaptionData, tmp_path: Path
) -> None:
    gone = [replace(p, path=tmp_path / "gone.png") for p in data.split("val")]
    with pytest.raises(DataError, match="not one picture could be decoded"):
        compute(captioner, gone, tmp_path / "cache")


def test_an_interrupted_computation_starts_again(
    captioner: Captioner, data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = data.split("train")
    monkeypatch.setattr(features, "_CHUNK", 4)
    calls = 0

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return augment(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(features, "augment", killed)
        with pytest.raises(KeyboardInterrupt):
            compute(captioner, pictures, tmp_path / "a", views=2)
    resumed = compute(captioner, pictures, tmp_path / "a", views=2)
    whole = compute(captioner, pictures, tmp_path / "b", views=2)
    np.testing.assert_array_equal(resumed.data, whole.data)
