from __future__ import annotations

from pathlib import Path

import pytest

from model.captioner import Captioner
from model.checkpoint import open_checkpoint, save_captioner
from tests.training.shapes import write_shapes
from training.commands.calibrate import main


def test_the_command_stores_the_temperature_and_keeps_the_rest(
    captioner: Captioner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    save_captioner(captioner, folder, {"note": "kept"})
    weights = (folder / "model.safetensors").read_bytes()
    data = str(write_shapes(tmp_path / "shapes", train=2, val=6, test=0, size=32))
    assert main([str(folder), "--data", data]) == 0
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.temperature != 1.0
    assert checkpoint.metrics == {"note": "kept"}
    assert (folder / "model.safetensors").read_bytes() == weights
    assert main([str(folder), "--data", data, "--split", "test"]) == 1
    assert "no test pictures" in capsys.readouterr().err
