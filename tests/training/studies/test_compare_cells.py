from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from model.cells import CELLS, Cell, State
from model.config import CellKind
from training.studies.compare_cells import (
    KINDS,
    PICTURES,
    STEPS,
    MemoryTask,
    interval,
    reach,
    reach_at_start,
    remember,
)


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


def test_the_page_in_docs_has_the_section_that_is_kept() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cells.md").read_text()
    assert text.count(f"\n{PICTURES}\n") == 1
