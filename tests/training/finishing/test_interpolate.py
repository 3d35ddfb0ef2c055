from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from model.captioner import Captioner
from model.checkpoint import load_captioner, save_captioner
from model.errors import CheckpointError
from model.vocabulary import Vocabulary
from tests.training import tiny
from training.commands.interpolate import main
from training.finishing.interpolate import SHARES, between


def pair(folder: Path) -> tuple[Captioner, Captioner]:
    a = tiny.captioner(tiny.shapes(folder))
    b = copy.deepcopy(a)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return a, b


def test_weights_lie_on_the_line_between_the_two(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    for share in (0.0, 0.25, 1.0):
        made = between(a, b, share).state_dict()
        for name, mine in a.state_dict().items():
            expected = mine + share * (b.state_dict()[name] - mine) if mine.is_floating_point() else mine
            torch.testing.assert_close(made[name], expected)


def test_strangers_have_nothing_between_them(tmp_path: Path) -> None:
    a, _ = pair(tmp_path)
    stranger = Captioner(a.config, Vocabulary.build(["another language altogether"], 1))
    with pytest.raises(CheckpointError, match="differ in vocabulary or sizes"):
        between(a, stranger, 0.5)


def test_the_share_with_the_best_score_on_validation_is_kept(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    save_captioner(a, tmp_path / "a", {})
    save_captioner(b, tmp_path / "b", {})
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--data", str(tmp_path / "shapes")]
    assert main([*arguments, "--run", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]) == 0
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [row["share"] for row in history] == list(SHARES)
    best = max(history, key=lambda row: row["score"])
    kept = load_captioner(tmp_path / "run" / "best").state_dict()
    expected = between(load_captioner(tmp_path / "a"), load_captioner(tmp_path / "b"), best["share"]).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(kept[name], value, atol=2e-3, rtol=2e-3)  # stored as float16
