from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.captioner import Captioner, TagHead
from model.vocabulary import SPECIAL, Vocabulary
from tests.training import tiny
from training.data import DataError, Picture
from training.features import Features
from training.finishing import tags

STAGES = 9  # all of the encoder's: what is cached are its regions


def pictures(*captions: str) -> list[Picture]:
    return [Picture(f"{i}.png", (caption,), "train", "mine", Path("none")) for i, caption in enumerate(captions)]


def features(seed: int, count: int) -> Features:
    """Of pictures of a dog, or of a cat in one of four regions: which it is stands in the first two channels."""
    rng = np.random.default_rng(seed)
    data = rng.normal(scale=0.3, size=(count, 1, 6, 2, 2)).astype(np.float16)
    said = []
    for row in range(count):
        kind, region = int(rng.integers(2)), int(rng.integers(4))
        data[row, 0, kind].flat[region] += 3
        said.append(("a dog runs", "a cat runs")[kind])
    return Features(data, np.zeros((count, 1), np.bool_), tuple(pictures(*said)), (), STAGES)


def test_tags_are_the_commonest_words_that_say_something() -> None:
    vocabulary = Vocabulary((*SPECIAL, "a", "dog", "cat", "runs", "with"))
    data = pictures("a dog runs with a dog", "a dog runs", "a cat runs with a bird", "a bird")
    assert tags.choose_tags(data, vocabulary, 10, 2) == ["runs", "dog"]  # of two dogs in one picture one counts
    assert tags.choose_tags(data, vocabulary, 1, 1) == ["runs"]
    with pytest.raises(DataError, match="no word is said of 9 pictures"):
        tags.choose_tags(data, vocabulary, 10, 9)


def test_a_target_is_whether_any_caption_says_the_word() -> None:
    picture = Picture("a.png", ("A dog.", "One dog and a cat"), "train", "mine", Path("none"))
    assert tags.targets_of([picture], ["cat", "bird", "dog"]).tolist() == [[1, 0, 1]]


def test_a_head_learns_what_stands_in_some_region_and_its_probabilities_are_honest() -> None:
    torch.manual_seed(0)
    train, val = features(0, 200), features(1, 100)
    config = replace(tiny.recipe().model, tags=("dog", "cat"))
    captioner = Captioner(config, Vocabulary((*SPECIAL, "a", "dog", "cat", "runs")))
    captioner.tags = TagHead(6, 2)
    history = tags.fit(captioner, train, val, 100, tiny.CPU)
    assert len(history) == 100
    assert max(epoch["val_map"] for epoch in history) > 95
    p = tags.predict(captioner, val, tiny.CPU).sigmoid().numpy()
    wanted = tags.targets_of(val.pictures, ["dog", "cat"])
    assert ((p > 0.5) == wanted).mean() > 0.9
    assert abs(p.mean() - wanted.mean()) < 0.05


def test_platt_makes_overconfident_logits_honest() -> None:
    torch.manual_seed(0)
    honest = torch.randn(4000, 3)
    targets = (torch.rand(4000, 3) < honest.sigmoid()).float()
    slope, shift = tags.platt(3 * honest + 1, targets)
    assert slope == pytest.approx(1 / 3, abs=0.03)
    assert shift == pytest.approx(-1 / 3, abs=0.1)


def test_mean_average_precision_is_of_the_ranking() -> None:
    targets = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], np.float32)
    assert tags.mean_average_precision(targets, targets) == 100
    worst = np.array([[0, 3], [1, 0], [0.5, 2], [2, 1]], np.float32)
    expected = 100 * ((1 / 3 + 2 / 4) / 2 + 1 / 4) / 2
    assert tags.mean_average_precision(worst, targets) == pytest.approx(expected)
