from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model import preprocess
from model.captioner import Captioner
from model.config import EncoderConfig, PreprocessConfig
from tests.training import tiny
from training import features
from training.augment import AugmentConfig, augment
from training.data import CaptionData, DataError, Picture
from training.features import Features, before_head, cached
from training.objectives import memory_of

FLIPS = AugmentConfig(flip=True, min_scale=0.8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def captioner(data: CaptionData) -> Captioner:
    return tiny.captioner(data)


def rows(found: Features) -> np.ndarray:
    """All that a `Features` holds, (P, V, ...)."""
    P, V = found.data.shape[:2]
    return np.stack([[found.data[p, v] for v in range(V)] for p in range(P)])


def stored(cache: Path) -> set[Path]:
    return {file for file in cache.rglob("*") if file.is_file()}


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


def test_a_frozen_encoder_is_cached_before_a_last_stage_that_makes_more_of_it(
    captioner: Captioner, data: CaptionData, tmp_path: Path
) -> None:
    """Lite's head makes 1280 channels of 80, in its small form; what the decoder reads stays the same."""
    pictures = data.split("val")
    assert before_head(captioner, 9) == 8
    assert [before_head(captioner, frozen) for frozen in (0, 1, 7, 8)] == [0, 1, 7, 8]  # cut where training begins
    assert compute(captioner, pictures, tmp_path, frozen=9).data.shape == (6, 1, 1280, 1, 1)
    found = compute(captioner, pictures, tmp_path, frozen=8)
    assert (found.stages, found.data.shape) == (8, (6, 1, 80, 1, 1))
    pixels = np.stack([preprocess.to_pixels(p.open(), captioner.config.preprocess) for p in pictures])
    with torch.no_grad():
        mine = memory_of(captioner.eval(), found.batch(range(6), [0] * 6, tiny.CPU), found.stages)
        for part, expected in zip(mine, captioner.encode(torch.from_numpy(pixels)), strict=True):
            torch.testing.assert_close(part, expected, atol=1e-2, rtol=1e-2)
    resnet = replace(captioner.config, encoder=EncoderConfig("resnet18"))  # its last stage makes less, not more
    assert before_head(Captioner(resnet, captioner.vocabulary), 5) == 5


def test_views_are_augmented_by_content_and_number(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    pictures = data.split("train")
    found = compute(captioner, pictures, tmp_path, views=3)
    assert found.data.shape[:2] == (22, 3)
    assert not found.flipped[:, 0].any()
    assert 5 < found.flipped[:, 1:].sum() < 39
    assert not np.array_equal(found.data[0, 1], found.data[0, 2])
    # A picture's views do not depend on its neighbours.
    fewer = compute(captioner, pictures[5:], tmp_path / "other", views=3)
    np.testing.assert_array_equal(fewer.flipped, found.flipped[5:])
    np.testing.assert_allclose(rows(fewer), rows(found)[5:], atol=1e-2)


def test_with_every_stage_trained_the_pixels_are_kept(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    pictures = data.split("val")
    found = compute(captioner, pictures, tmp_path, frozen=0, views=3)
    assert (found.data.dtype, found.data.shape) == (np.uint8, (6, 1, 32, 32, 3))
    for row, picture in zip(rows(found), pictures, strict=True):
        np.testing.assert_array_equal(row[0], np.asarray(picture.open()))


def test_computed_once(
    captioner: Captioner, data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compute(captioner, data.split("val"), tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(features, "_compute", never)
    again = compute(captioner, data.split("val"), tmp_path)
    np.testing.assert_array_equal(rows(first), rows(again))
    assert again.pictures == first.pictures


@pytest.mark.parametrize(
    "change",
    [
        lambda c, p, kw: kw.update(frozen=3),
        lambda c, p, kw: kw.update(precision="bf16"),
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
    for views, expected in ((1, 1), (2, 3)):  # pictures as they are have one place, augmented ones another for each
        for augmentation in (FLIPS, AugmentConfig(flip=True)):
            compute(captioner, data.split("val"), tmp_path, frozen=2, views=views, augmentation=augmentation)
        assert len(list(tmp_path.iterdir())) == expected


def test_a_picture_more_is_all_that_is_computed(
    captioner: Captioner, data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    pixels = Picture.open

    def watched(picture: Picture) -> Any:
        opened.append(picture.name)
        return pixels(picture)

    monkeypatch.setattr(Picture, "open", watched)
    pictures = data.split("train")
    compute(captioner, pictures[1:], tmp_path, views=2)
    opened.clear()
    found = compute(captioner, pictures, tmp_path, views=2)
    assert opened == [pictures[0].name]
    assert found.pictures == tuple(pictures)
    opened.clear()
    compute(captioner, pictures[::-1], tmp_path, views=2)  # and another order is no other picture
    assert opened == []
    compute(captioner, pictures[:3], tmp_path, views=3)  # a view more: the two there are stay
    assert len(stored(tmp_path)) == 2 * 22 + 3


def test_a_picture_changed_in_place_is_computed_again(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    first, second, *_ = data.split("val")
    found = []
    for source in (first, second, first):
        file.write_bytes(source.read_bytes())
        picture = replace(first, path=file, size=file.stat().st_size)
        found.append(rows(compute(captioner, [picture], tmp_path / "cache")))
    assert not np.allclose(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_other_code_has_another_place(
    captioner: Captioner, data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places() -> int:
        compute(captioner, data.split("val"), tmp_path, views=2)
        return len(list(tmp_path.iterdir()))

    assert places() == 2
    monkeypatch.setattr(features, "_AUGMENT_CODE", (rows,))
    assert places() == 3
    monkeypatch.setattr(features, "_CODE", (*features._CODE, stored))
    assert places() == 5
    monkeypatch.setattr(features, "_LIBRARIES", ("pillow",))
    assert places() == 7


def test_comments_are_no_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    texts = ("x = 1\n", "# what\nx  =  1  # and why\n", "x = 2\n")
    meanings = []
    for i, text in enumerate(texts):
        (tmp_path / f"code_{i}.py").write_text(text)
        meanings.append(features._meaning(importlib.import_module(f"code_{i}")))
    assert meanings[0] == meanings[1] != meanings[2]


def test_what_was_cut_off_is_computed_again(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    whole = rows(compute(captioner, data.split("val"), tmp_path))
    short, empty, aside, *_ = sorted(stored(tmp_path))
    short.write_bytes(short.read_bytes()[:-1])
    empty.write_bytes(b"")
    aside.rename(aside.with_name(f".{aside.name}.1234"))  # as a process leaves it that is killed while it writes
    np.testing.assert_allclose(rows(compute(captioner, data.split("val"), tmp_path)), whole, atol=1e-2)


def test_runs_at_once_leave_whole_rows(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    """Each starts while the other is half way, and finds what it needs or computes it too."""
    pictures, both = data.split("train"), []
    write = features._write

    def meanwhile(file: Path, content: bytes) -> None:
        if len(both) == 0:
            both.append(None)
            both.append(rows(compute(captioner, pictures, tmp_path / "cache")))
        write(file, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_write", meanwhile)
        first = rows(compute(captioner, pictures, tmp_path / "cache"))
    alone = rows(compute(captioner, pictures, tmp_path / "alone"))
    for found in (first, both[1], rows(compute(captioner, pictures, tmp_path / "cache"))):
        np.testing.assert_array_equal(found, alone)
    assert len(stored(tmp_path / "cache")) == 22


def test_the_room_it_takes_is_said_and_checked_before(
    captioner: Captioner, data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "training")
    compute(captioner, data.split("val"), tmp_path / "cache", views=2)
    assert "12 of 12 views to compute, which take 0.00 GB" in caplog.text
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096 * 21))
    compute(captioner, data.split("val"), tmp_path / "cache", views=2)  # nothing more to keep
    before = stored(tmp_path / "cache")
    with pytest.raises(DataError, match=r"need 0\.00 GB in .*cache, where 0\.00 GB are free; remove .*--cache"):
        compute(captioner, data.split("train"), tmp_path / "cache")
    assert stored(tmp_path / "cache") == before


def test_a_disk_that_runs_full_is_a_clear_error(
    captioner: Captioner, data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if len(stored(tmp_path)) == 3:
            write(path, content[:1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DataError, match=r"cannot be kept in .*: No space left on device; --cache names another"):
            compute(captioner, data.split("val"), tmp_path)
    assert len(stored(tmp_path)) == 3
    whole = rows(compute(captioner, data.split("val"), tmp_path))
    assert len(whole) == 6


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
        np.testing.assert_allclose(rows(found), rows(expected), atol=1e-2)
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
    np.testing.assert_allclose(rows(resumed), rows(whole), atol=1e-2)
    np.testing.assert_array_equal(resumed.flipped, whole.flipped)
