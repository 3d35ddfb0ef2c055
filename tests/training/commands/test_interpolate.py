from __future__ import annotations

import json
from pathlib import Path

import torch

from model.checkpoint import load_captioner, save_captioner
from tests.training import tiny
from training.commands.interpolate import main
from training.finishing.interpolate import SHARES, between


def test_the_share_with_the_best_score_on_validation_is_kept(tmp_path: Path) -> None:
    a, b = tiny.pair(tmp_path)
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
