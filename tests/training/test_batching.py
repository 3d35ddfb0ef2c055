from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.captioner import Captioner
from model.vocabulary import END, PAD, START, words_of
from tests.training import tiny
from training.augment import AugmentConfig, augment
from training.batching import Batch, CaptionSource, padded
from training.config import TrainConfig
from training.language.sides import mirrored

CAPTIONS = [[f"a red circle left of a {'blue ' * (i % 5)}square", "a circle", "red"][: 1 + i % 3] for i in range(22)]
A, RED, CIRCLE = 4, 5, 6  # any words will do


def source_of(captioner: Captioner, captions: Sequence[Sequence[str]], views: int = 1, **train: Any) -> CaptionSource:
    config = TrainConfig(**{"batch_size": 4, "captions_per_picture": 2, **train})
    return CaptionSource(tiny.feature_set(captions, views), captioner, config, AugmentConfig(flip=True))


def said(captioner: Captioner, words: Tensor) -> list[str]:
    return captioner.vocabulary.decode(words.tolist())


def test_every_picture_comes_once_an_epoch_with_its_own_captions(captioner: Captioner) -> None:
    source = source_of(captioner, CAPTIONS, views=2)
    batches = list(source.batches(0, tiny.CPU))
    assert len(batches) == len(source) == 6
    assert sorted(row for batch in batches for row in batch.rows) == list(range(22))
    views = set()
    for batch in batches:
        for row, flip, values, words in zip(batch.rows, batch.flipped, batch.inputs, batch.words, strict=True):
            assert float(values[0]) == pytest.approx(row + 0.1 * flip, abs=0.01)
            views.add(flip)
            own = [words_of(mirrored(c) or "" if flip else c) for c in CAPTIONS[row]]
            for caption in words:
                assert said(captioner, caption) in own
                ids = caption[caption != PAD].tolist()
                assert (ids[0], ids[-1]) == (START, END)
    assert views == {False, True}


@pytest.mark.parametrize(("visits", "count"), [(2.0, 22), (1.5, 16), (0.5, 6), (0.0, 0)])
def test_a_set_is_visited_as_often_as_asked(visits: float, count: int, captioner: Captioner) -> None:
    """Odd rows are of the set `shapes`, even ones of `others`, which is visited once."""
    config = TrainConfig(batch_size=4, captions_per_picture=2)
    source = CaptionSource(tiny.feature_set(CAPTIONS), captioner, config, AugmentConfig(), {"shapes": visits})
    orders = [[row for batch in source.batches(epoch, tiny.CPU) for row in batch.rows] for epoch in range(2)]
    for rows in orders:
        counts = np.bincount(rows, minlength=22)
        assert (counts[0::2] == 1).all()
        assert set(counts[1::2].tolist()) <= {math.floor(visits), math.ceil(visits)}
        assert counts[1::2].sum() == count
    assert len(source) == math.ceil((11 + count) / 4) == len(list(source.batches(0, tiny.CPU)))
    assert orders[0] != orders[1]


def test_a_picture_without_a_true_mirrored_caption_is_not_mirrored(captioner: Captioner) -> None:
    """Cached views and pixels; of the other pictures only the true captions are taught when mirrored."""
    captions = [["it looks right", "the circle is left"], ["a red circle left of a square", "it looks right"]] * 4
    source = source_of(captioner, captions, views=2)
    mirrored_rows = set()
    for epoch in range(4):
        for batch in source.batches(epoch, tiny.CPU):
            for row, flip, values, words in zip(batch.rows, batch.flipped, batch.inputs, batch.words, strict=True):
                assert float(values[0]) == pytest.approx(row + 0.1 * flip, abs=0.01)
                mirrored_rows |= {row} if flip else set()
                if flip:
                    assert said(captioner, words[0]) == words_of("a red circle right of a square")
    assert mirrored_rows == {1, 3, 5, 7}

    features = tiny.feature_set(captions, pixels=True)
    source = CaptionSource(features, captioner, TrainConfig(batch_size=8), AugmentConfig(flip=True))
    flips: dict[int, set[bool]] = {}
    for epoch in range(8):
        [batch] = source.batches(epoch, tiny.CPU)
        for row, flip, pixels in zip(batch.rows, batch.flipped, batch.inputs.numpy(), strict=True):
            original = features.data[row, 0]
            np.testing.assert_array_equal(pixels, original[:, ::-1] if flip else original)
            flips.setdefault(row % 2, set()).add(flip)
    assert flips == {0: {False}, 1: {False, True}}


def test_captions_are_chosen_without_repeats_where_there_are_enough(captioner: Captioner) -> None:
    source = source_of(captioner, CAPTIONS)
    for batch in source.batches(3, tiny.CPU):
        for row, words in zip(batch.rows, batch.words, strict=True):
            assert len({tuple(caption.tolist()) for caption in words}) == min(2, len(CAPTIONS[row]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 7))
def test_batches_depend_on_seed_and_epoch_alone_and_can_start_midway(
    captioner: Captioner, seed: int, epoch: int, skip: int
) -> None:
    def batches(skip: int, seed: int = seed, epoch: int = epoch) -> list[Batch]:
        return list(source_of(captioner, CAPTIONS, views=2, seed=seed).batches(epoch, tiny.CPU, skip))

    whole = batches(0)
    for mine, other in zip(batches(skip), whole[skip:], strict=True):
        assert mine.rows == other.rows
        assert torch.equal(mine.words, other.words)
        assert torch.equal(mine.inputs, other.inputs)
    assert [b.rows for b in batches(0, seed=seed + 1)] != [b.rows for b in whole]
    assert [b.rows for b in batches(0, epoch=epoch + 1)] != [b.rows for b in whole]


def test_captions_of_like_length_stand_together(captioner: Captioner) -> None:
    captions = [["a " * (1 + i % 8)] for i in range(64)]
    source = source_of(captioner, captions, captions_per_picture=1, batch_size=8)
    for batch in source.batches(0, tiny.CPU):
        assert batch.words.shape[-1] - 2 == int((batch.words == A).sum(-1).max())
        assert (batch.words == PAD).sum() == 0  # eight lengths, eight batches


def test_long_captions_are_cut(captioner: Captioner) -> None:
    source = source_of(captioner, [["a red circle above a blue square"]], max_words=3)
    (batch,) = source.batches(0, tiny.CPU)
    assert said(captioner, batch.words[0, 0]) == ["a", "red", "circle"]
    assert not (batch.words == END).any()  # it ends later: none is taught here
    assert said(captioner, torch.tensor(source.ids[0][0])) == [
        "a",
        "red",
        "circle",
        "above",
        "a",
        "blue",
        "square",
    ]  # for rewards


def test_pixels_are_augmented_anew_at_every_visit(captioner: Captioner) -> None:
    features = tiny.feature_set([["a circle left of a square"]] * 9, pixels=True)
    augmentation = AugmentConfig(flip=True, min_scale=0.8)
    config = TrainConfig(batch_size=4, captions_per_picture=1, seed=5)
    seen: dict[int, list[Tensor]] = {}
    for epoch in (0, 1):
        for number, batch in enumerate(
            CaptionSource(features, captioner, config, augmentation).batches(epoch, tiny.CPU)
        ):
            assert batch.inputs.dtype == torch.uint8
            for row, flip, pixels, words in zip(batch.rows, batch.flipped, batch.inputs, batch.words, strict=True):
                expected, flipped = augment(
                    features.data[row, 0], np.random.default_rng([5, epoch, number, row]), augmentation
                )
                np.testing.assert_array_equal(pixels, expected)
                assert flip == flipped
                assert said(captioner, words[0])[2] == ("right" if flip else "left")
                seen.setdefault(row, []).append(pixels)
    assert any(not torch.equal(first, second) for first, second in seen.values())


@given(st.lists(st.lists(st.lists(st.integers(4, 9), max_size=5), min_size=2, max_size=2), min_size=1, max_size=4))
def test_padding_goes_behind_the_end(captions: list[list[list[int]]]) -> None:
    words = padded(captions)
    assert words.shape[:2] == (len(captions), 2)
    assert words.shape[2] == 2 + max(len(ids) for mine in captions for ids in mine)
    for mine, expected in zip(words.tolist(), captions, strict=True):
        for ids, wanted in zip(mine, expected, strict=True):
            assert ids == [START, *wanted, END] + [PAD] * (len(ids) - len(wanted) - 2)


@given(
    st.lists(st.lists(st.lists(st.integers(4, 9), max_size=5), min_size=2, max_size=2), min_size=1, max_size=4),
    st.integers(1, 6),
)
def test_what_is_cut_has_no_end(captions: list[list[list[int]]], most: int) -> None:
    words = padded(captions, most)
    for mine, expected in zip(words.tolist(), captions, strict=True):
        for ids, wanted in zip(mine, expected, strict=True):
            taught = [START, *wanted, END] if len(wanted) <= most else [START, *wanted[:most]]
            assert ids == taught + [PAD] * (len(ids) - len(taught))
    assert words.shape[2] == max(min(len(ids), most) + 1 + (len(ids) <= most) for mine in captions for ids in mine)
