from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from model.checkpoint import load_captioner
from tests.model.tiny import ENCODER
from tests.training.shapes import write_shapes
from training.commands import compare_cells as command
from training.commands.compare_cells import main
from training.studies import compare_cells
from training.studies.compare_cells import (
    KINDS,
    PICTURES,
    PLAIN,
    SHOWN,
    MemoryTask,
)

RECIPE = f"""
encoder_weights = "none"
min_count = 1
[model.preprocess]
size = 32
[model.encoder]
name = "{ENCODER}"
[model.decoder]
embed_size = 8
hidden_size = 8
[train]
epochs = 1
captions_per_picture = 1
precision = "fp32"
"""


def columns(text: str, name: str) -> list[int]:
    return [line.count("|") for line in text.splitlines() if line.startswith(f"| {name} |")]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets that end soon, of the study and of the command, which has the same names."""
    task = partial(MemoryTask, hidden_size=4, batch=2, updates=1, test=10)
    for module in (compare_cells, command):
        for name, value in (("SEEDS", 2), ("TRAINED_SEEDS", 2), ("MemoryTask", task)):
            monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("tiny")
def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_shapes(tmp_path / "shapes", train=8, val=10, test=1, size=32)
    (tmp_path / "small.toml").write_text(RECIPE)
    folders = {name: str(tmp_path / name) for name in ("runs", "cache", "docs")}
    arguments = ["--data", str(data), "--recipe", str(tmp_path / "small.toml")]
    arguments += [part for name, folder in folders.items() for part in (f"--{name}", folder)]
    assert main(arguments) == 0
    text = (tmp_path / "docs" / "cells.md").read_text()
    assert text in capsys.readouterr().out
    table = len(SHOWN) + 2
    for kind in KINDS:  # a row in each of the four tables
        assert columns(text, kind) == [table, table, 6, table]
    assert columns(text, PLAIN) == [6, table]
    assert "seeds 0 to 1: 1 epochs on 8 pictures of shapes" in text
    assert "(4 states) learns it from 1 batches of 2 sequences" in text  # the small task, not the one of the page
    for name in ("memory", "cells"):
        with Image.open(tmp_path / "docs" / "images" / f"{name}.png") as image:
            assert image.width > 1000
    plain = load_captioner(tmp_path / "runs" / "lstm-no-attention-1" / "best")
    assert not plain.decoder.attends

    # Without pictures their section stays as it is, and what comes before is written anew.
    _, heading, pictures = text.partition(PICTURES)
    (tmp_path / "docs" / "cells.md").write_text("old\n" + heading + pictures)
    assert main(["--recipe", str(tmp_path / "small.toml"), "--docs", folders["docs"]]) == 0
    assert (tmp_path / "docs" / "cells.md").read_text() == text


def test_data_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "nowhere")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
