from __future__ import annotations

from pathlib import Path

import pytest

from training.commands import release as release_command


def test_notes_that_lack_a_part_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes.toml"
    notes.write_text('intended = "tests"\ndata = []\n')
    arguments = [str(tmp_path), "--data", "none", "--to", str(tmp_path / "to"), "--notes", str(notes)]
    assert release_command.main([*arguments, "--name", "tiny", "--version", "1"]) == 1
    assert "lacks failures, limits, terms" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
