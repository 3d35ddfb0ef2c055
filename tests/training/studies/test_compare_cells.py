from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from model.cells import CELLS, Cell, State
from model.checkpoint import load_captioner
from model.config import CellKind
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
    STEPS,
    MemoryTask,
    interval,
    reach,
    reach_at_start,
    remember,
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


@pytest.mark.parametrize("kind", KINDS)
def test_reach_is_the_norm_of_each_steps_gradient(kind: CellKind) -> None:
    torch.manual_seed(0)
    cell, inputs = CELLS[kind](3, 4).double(), torch.randn(6, 3, dtype=torch.float64)
    first = inputs[0].clone().requires_grad_()
    hidden, _ = cell.run(torch.stack([first, *inputs[1:]])[None], cell.initial_state(1))
    expected = []
    for state in hidden[0]:
        rows = [torch.autograd.grad(value, first, retain_graph=True)[0] for value in state]
        expected.append(float(torch.stack(rows).norm()))
    np.testing.assert_allclose(reach(cell, inputs), expected, rtol=1e-9)


def test_a_gated_cell_remembers_what_a_plain_one_forgets() -> None:
    norms = {kind: reach_at_start(kind, 0, 16, 32) for kind in KINDS}
    assert all(values.shape == (STEPS,) and values[0] == 1 for values in norms.values())
    assert norms["rnn"][-1] < norms["gru"][-1] < 1e-3 * norms["lstm"][-1]
    np.testing.assert_allclose(norms["lstm"], norms["lstm-peephole"])  # peepholes start at zero


def test_a_cell_that_remembers_is_told_from_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An LSTM learns to say the first word again; one whose state is wiped at every step says it but once."""
    task = MemoryTask(words=3, hidden_size=16, updates=60, learning_rate=1e-2, test=200)
    kept = remember("lstm", task, 0)
    assert kept.shape == (STEPS,)
    assert kept[:5].min() > 0.9
    short = replace(task, updates=3)
    assert np.array_equal(remember("lstm", short, 0), remember("lstm", short, 0))  # a seed is a run

    def forgetful(cell: Cell, xs: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.stack([cell(x, state).hidden for x in xs.unbind(1)], 1), state

    monkeypatch.setattr(CELLS["lstm"], "run", forgetful)
    lost = remember("lstm", task, 0)
    assert lost[0] > 0.9
    assert lost[1:].max() < 0.6  # by chance: a third


def test_the_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert interval(values) == pytest.approx((high - low) / 2, rel=1e-3)


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


def test_the_page_in_docs_has_the_section_that_is_kept() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cells.md").read_text()
    assert text.count(f"\n{PICTURES}\n") == 1


def columns(text: str, name: str) -> list[int]:
    return [line.count("|") for line in text.splitlines() if line.startswith(f"| {name} |")]


def test_data_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "nowhere")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
