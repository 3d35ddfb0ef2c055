from __future__ import annotations

import json
from pathlib import Path

import torch

from model.checkpoint import load_captioner, save_captioner
from tests.training import tiny
from training.commands import tags as tags_command


def test_the_command_gives_a_checkpoint_tags(tmp_path: Path) -> None:
    data = tiny.shapes(tmp_path)
    save_captioner(tiny.captioner(data), tmp_path / "plain", {})
    arguments = [str(tmp_path / "plain"), "--data", str(tmp_path / "shapes"), "--cache", str(tmp_path / "cache")]
    assert tags_command.main([*arguments, "--run", str(tmp_path / "run"), "--least", "3", "--epochs", "2"]) == 0
    made = load_captioner(tmp_path / "run" / "best")
    assert made.tags is not None
    assert {"red", "circle"} & set(made.config.tags)
    assert not {"a", "of"} & set(made.config.tags)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["tags"] == len(made.config.tags)
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    with torch.inference_mode():
        assert made.see(pixels).tags.shape == (2, len(made.config.tags))
