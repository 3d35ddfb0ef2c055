from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.cells import CELLS
from model.config import CellKind
from tests.training.shapes import write_shapes
from training import compare_cells
from training.compare_cells import KINDS, SHOWN, STEPS, main, reach, reach_at_start

RECIPE = """
encoder_weights = "none"
min_count = 1
[model.preprocess]
size = 32
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


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_cells, "SEEDS", 2)
    data = write_shapes(tmp_path / "shapes", train=20, val=10, test=1, size=32)
    (tmp_path / "small.toml").write_text(RECIPE)
    folders = {name: str(tmp_path / name) for name in ("runs", "cache", "docs")}
    arguments = ["--data", str(data), "--recipe", str(tmp_path / "small.toml")]
    arguments += [part for name, folder in folders.items() for part in (f"--{name}", folder)]
    assert main(arguments) == 0
    text = (tmp_path / "docs" / "cells.md").read_text()
    assert text in capsys.readouterr().out
    for kind in KINDS:  # a row in each of the three tables
        assert [line.count("|") for line in text.splitlines() if line.startswith(f"| {kind} |")] == [
            len(SHOWN) + 2, len(SHOWN) + 2, 6,
        ]  # fmt: skip
    assert "1 epochs on 20 pictures of shapes" in text
    with Image.open(tmp_path / "docs" / "images" / "cells.png") as image:
        assert image.width > 1000


def test_data_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "nowhere")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
