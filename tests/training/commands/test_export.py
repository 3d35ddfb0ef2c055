from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from model.checkpoint import CONFIG, GRAPHS
from model.runtime import load_engine
from tests.model.tiny import pictures
from training.commands.export import main


def test_exported_elsewhere_it_serves_there(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(checkpoint, tmp_path / "served"))  # another model, to be replaced whole
    assert main([str(folder), "--to", str(target)]) == 0
    assert not (folder / GRAPHS).exists()
    engine = load_engine(target, "cpu", "openvino")
    assert engine.card == {"data": "none"}
    assert engine.caption(pictures(1))[0][0].text
    assert target.stat().st_mode & 0o055 == 0o055
    assert json.loads((target / CONFIG).read_text())["model"]["decoder"]["sentinel"] is False


def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(tmp_path / "none")], [str(tmp_path / "none"), "--to", str(tmp_path / "new")]):
        assert main(arguments) == 1
        assert "error: no checkpoint folder at" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
