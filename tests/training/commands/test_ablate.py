from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.training.shapes import write_shapes
from tests.training.studies.tables import result_of, write
from training.commands.ablate import main
from training.studies.ablate import keep, read_record, read_table


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("left", "right")):
        write_shapes(tmp_path / name, train=22, val=6, test=1, size=32, seed=seed)
    arguments = ["--table", str(write(tmp_path)), "--data", str(tmp_path / "left"), str(tmp_path / "right")]
    arguments += [part for name in ("runs", "cache", "docs") for part in (f"--{name}", str(tmp_path / name))]
    (tmp_path / "docs").mkdir()
    assert main([*arguments, "--minutes", "0"]) == 0  # the base alone: what all are compared with
    assert "One seed only" in (tmp_path / "docs" / "ablation.md").read_text()
    assert main([*arguments, "--rows", "second seed", "left alone", "greedy"]) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    text = (tmp_path / "docs" / "ablation.md").read_text()
    assert text in capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| row")]
    assert [row.split("|")[1].strip() for row in rows] == [
        "base", "second seed", "fed pieces", "base", "more", "pupil", "in between", "from there", "together",
        "base", "left alone", "base", "greedy",
    ]  # fmt: skip
    assert {row.count("|") for row in rows} == {12}
    assert "1 epochs on 40 pictures" in text
    assert re.search(r"`between = .*`, share (0|1|0\.\d+) \|", text)
    record = read_record(tmp_path / "docs" / "ablation.json")
    assert list(record) == [row.name for row in read_table(write(tmp_path)).rows]
    assert all(set(made.best["val_cider"]) == {"left", "right"} and made.seconds > 0 for made in record.values())
    assert [made.pictures for made in record.values()] == [40, 40, 40, 20, 40, 40, 40, 40, 40, 40]
    assert all(made.scored == {"left": 5, "right": 5} for made in record.values())
    with Image.open(tmp_path / "docs" / "images" / "ablation.png") as image:
        assert image.width > 1000
    assert main([*arguments, "--rows", "nonsense"]) == 1
    assert "no row 'nonsense'; rows: base, second seed" in capsys.readouterr().err


def test_the_record_alone_gives_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    table = read_table(write(tmp_path))
    arguments = ["--table", str(tmp_path / "ablation.toml"), "--docs", str(tmp_path)]
    assert main(arguments) == 1
    assert "holds no result of the base as it is now" in capsys.readouterr().err
    for row in table.rows[:2]:
        keep(table, tmp_path / "ablation.json", row.name, result_of(table, row, 30.0, 20.0))
    changed = replace(table.rows[2], teachers=("base",))
    keep(table, tmp_path / "ablation.json", changed.name, result_of(table, changed, 99.0))
    before = (tmp_path / "ablation.json").read_bytes()
    assert main(arguments) == 0
    text = (tmp_path / "ablation.md").read_text()
    assert "| second seed |" in text
    assert "fed pieces" not in text
    assert "not shown, because they have changed since or are no rows any more: fed pieces" in caplog.text
    assert (tmp_path / "images" / "ablation.png").is_file()
    assert (tmp_path / "ablation.json").read_bytes() == before
    (tmp_path / "ablation.json").write_text('[{"row": "base", "cider": 3}]')
    assert main(arguments) == 1
    assert "ablation.json is no record of results" in capsys.readouterr().err
