from __future__ import annotations

from pathlib import Path

import pytest

from training.commands import measure


def test_folder_sets_and_weights_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(measure, "measure", lambda *arguments: given.extend(arguments))
    assert measure.main(["to", "--data", "a:val=3", "b", "--choose", "a=1", "b=0.5"]) == 0
    assert given == [Path("to"), ["a:val=3", "b"], {"a": 1.0, "b": 0.5}]


def test_a_folder_without_a_release_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main([str(tmp_path / "none"), "--data", str(tmp_path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
