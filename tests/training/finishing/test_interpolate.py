from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.captioner import Captioner
from model.errors import CheckpointError
from model.vocabulary import Vocabulary
from tests.training import tiny
from training.finishing.interpolate import between


def test_weights_lie_on_the_line_between_the_two(tmp_path: Path) -> None:
    a, b = tiny.pair(tmp_path)
    for share in (0.0, 0.25, 1.0):
        made = between(a, b, share).state_dict()
        for name, mine in a.state_dict().items():
            expected = mine + share * (b.state_dict()[name] - mine) if mine.is_floating_point() else mine
            torch.testing.assert_close(made[name], expected)


def test_strangers_have_nothing_between_them(tmp_path: Path) -> None:
    a, _ = tiny.pair(tmp_path)
    stranger = Captioner(a.config, Vocabulary.build(["another language altogether"], 1))
    with pytest.raises(CheckpointError, match="differ in vocabulary or sizes"):
        between(a, stranger, 0.5)
