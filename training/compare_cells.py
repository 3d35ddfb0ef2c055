"""The recurrent cells compared: `python -m training.compare_cells --data SET` writes docs/cells.md and its plot.

First, how much of the first input reaches step t: the norm of the gradient of s_t with respect to
x_1. Then, decoders of each cell trained on the same small budget with the same seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.cells import CELLS, Cell
from model.checkpoint import load_captioner
from model.config import CellKind
from model.errors import CaptionModelError
from training.config import Recipe, find_recipe
from training.data import CaptionData, DataError, read
from training.process import settle
from training.train import best_epoch, train

log = logging.getLogger("training.compare_cells")

KINDS: tuple[CellKind, ...] = ("rnn", "gru", "lstm", "lstm-peephole")
STEPS = 50
SHOWN = (1, 2, 5, 10, 20, 30, 50)  # the table's steps
SEEDS = 5  # fresh cells, for the gradients at initialisation

Norms = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trained:
    """A decoder of one cell after training; `norms` (STEPS,), relative to step 1."""

    parameters: int
    epoch: int
    loss: float
    cider: float
    norms: Norms


def reach(cell: Cell, inputs: Tensor) -> Norms:
    """How strongly s_t depends on x_1: the Frobenius norm of ds_t/dx_1 for t = 1..T, (T,).

    inputs: (T, I). s_t is the hidden state, what the next layer sees; the first state is zero.
    """
    cell = cell.double()
    size = inputs.shape[1]
    xs = inputs.detach().double()[:, None].expand(-1, size, -1)  # one copy of the sequence for each direction of x_1

    def states(first: Tensor) -> Tensor:
        state = cell.initial_state(size)
        hidden = []
        for x in (first, *xs[1:]):
            state = cell(x, state).state
            hidden.append(state[-1])
        return torch.stack(hidden)  # (T, I, H)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)  # torch's own use of it
        # Forward mode: the gradients at all steps in one sweep.
        jacobian = torch.func.jvp(states, (xs[0].clone(),), (torch.eye(size, dtype=torch.float64),))[1]
    norms: Norms = jacobian.flatten(1).norm(dim=1).numpy()
    return norms


def reach_at_start(kind: CellKind, seed: int, input_size: int, hidden_size: int) -> Norms:
    """`reach` of a fresh cell under word vectors as the decoder starts with, relative to step 1."""
    torch.manual_seed(seed)
    cell = CELLS[kind](input_size, hidden_size)
    return relative(reach(cell, torch.randn(STEPS, input_size) * input_size**-0.5))


def relative(norms: Norms) -> Norms:
    """Norms divided by that of the first step."""
    divided: Norms = norms / norms[0]
    return divided


def train_cells(recipe: Recipe, data: CaptionData, runs: Path, cache: Path, device: torch.device) -> dict[str, Trained]:
    """Run the recipe once a cell (a run that is finished already is only read) and measure what came out."""
    trained: dict[str, Trained] = {}
    for kind in KINDS:
        decoder = replace(recipe.model.decoder, cell=kind)
        mine = replace(recipe, model=replace(recipe.model, decoder=decoder))
        log.info("training: %s", kind)
        best = train(mine, data, runs / kind, cache, device)
        captioner = load_captioner(best)
        history: list[dict[str, Any]] = json.loads((runs / kind / "history.json").read_text())
        row = best_epoch(history)
        # Real captions, one after the other, as the trained layer's inputs.
        words = [i for p in data.split("val")[:STEPS] for i in captioner.vocabulary.encode(p.captions[0])][:STEPS]
        norms = reach(captioner.decoder.layer1, captioner.decoder.embedding.weight[words])
        trained[kind] = Trained(
            sum(p.numel() for p in captioner.decoder.parameters()),
            row["epoch"],
            row["val_loss"],
            next(iter(row["val_cider"].values())),
            relative(norms),
        )
    return trained


def page(start: dict[str, list[Norms]], trained: dict[str, Trained], recipe: Recipe, pictures: int, source: str) -> str:
    """docs/cells.md."""
    means = {kind: np.exp(np.mean(np.log(norms), 0)) for kind, norms in start.items()}
    after = {kind: result.norms for kind, result in trained.items()}
    rows = [
        f"| {kind} | {result.parameters / 1e6:.2f} M | {result.loss:.3f} | {result.cider:.1f} | {result.epoch} |"
        for kind, result in trained.items()
    ]
    sizes = recipe.model.decoder
    return "\n".join(
        [
            "# The recurrent cells, compared",
            "",
            "Written by `python -m training.compare_cells --data SET`; change that, not this.",
            "",
            "![How much of the first input reaches step t, and validation CIDEr, for each cell](images/cells.png)",
            "",
            "## How much of the first input reaches step t",
            "",
            "The norm of the gradient of the state s_t with respect to the first input, divided by its value at t = 1.",
            f"Fresh cells ({sizes.embed_size} inputs, {sizes.hidden_size} states), geometric mean of {SEEDS} seeds:",
            "",
            *_norm_table(means),
            "",
            "A plain RNN multiplies by the same matrix and a slope below one at every step, so the gradient falls "
            "geometrically. The LSTM's cell state is only scaled, by its forget gate, whose bias starts at 1; the "
            "GRU's update gate starts half open. Peepholes start at zero: a fresh peephole LSTM is a fresh LSTM.",
            "",
            "The first layer of each decoder trained below, reading real captions:",
            "",
            *_norm_table(after),
            "",
            "## The same small budget for each cell",
            "",
            f"Recipe `{recipe.name}`, seed {recipe.train.seed}: {recipe.train.epochs} epochs on {pictures} pictures of "
            f"{source} with a frozen {recipe.model.encoder.name}; validation of the best epoch, beam "
            f"{recipe.model.search.beam_size}. One run a cell, so small differences are chance.",
            "",
            "| cell | decoder parameters | validation loss | validation CIDEr | epoch |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Captions are some ten words long, and attention shows the picture anew at every step: little must be "
            "remembered over many steps, so a longer reach need not show in these figures.",
            "",
        ]
    )


def plot(start: dict[str, list[Norms]], trained: dict[str, Trained], runs: Path, file: Path) -> None:
    """Three panels: gradients at the start, gradients after training, CIDEr by epoch."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(KINDS, ("#d55e00", "#009e73", "#0072b2", "#000000"), strict=True))  # told apart by everyone
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    steps = np.arange(1, STEPS + 1)
    for kind in KINDS:
        style: dict[str, Any] = {"color": colours[kind], "linestyle": "--" if kind == "lstm-peephole" else "-"}
        norms = np.stack(start[kind])
        left.plot(steps, np.exp(np.log(norms).mean(0)), label=kind, **style)
        left.fill_between(steps, norms.min(0), norms.max(0), color=colours[kind], alpha=0.15, linewidth=0)
        middle.plot(steps, trained[kind].norms, label=kind, **style)
        history = json.loads((runs / kind / "history.json").read_text())
        cider = [next(iter(epoch["val_cider"].values())) for epoch in history]
        right.plot(range(1, len(cider) + 1), cider, marker="o", label=kind, **style)
    for axes, title in ((left, "fresh cells"), (middle, "after training")):
        axes.set(title=title, xlabel="step t", ylabel="|ds_t/dx_1| / |ds_1/dx_1|", yscale="log")
    right.set(title="decoders at the same budget", xlabel="epoch", ylabel="validation CIDEr")
    right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _norm_table(norms: dict[str, Norms]) -> list[str]:
    head = "| cell | " + " | ".join(f"t = {t}" for t in SHOWN) + " |"
    rows = [f"| {kind} | " + " | ".join(f"{values[t - 1]:.2g}" for t in SHOWN) + " |" for kind, values in norms.items()]
    return [head, "|---" * (len(SHOWN) + 1) + "|", *rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.compare_cells", description="Compare the cells.")
    parser.add_argument("--data", required=True, nargs="+", help="caption sets; PATH[:val=N,seed=S]")
    parser.add_argument("--recipe", default="cells", help="a TOML file, or the name of one in training/recipes")
    parser.add_argument("--runs", type=Path, default=Path("runs/cells"), help="where the four runs go")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where features are kept (default: cache)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where cells.md and images/cells.png go")
    options = parser.parse_args(arguments)
    settle()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        recipe = find_recipe(options.recipe)
        data = read(*options.data)
        sizes = recipe.model.decoder
        start: dict[str, list[Norms]] = {
            kind: [reach_at_start(kind, seed, sizes.embed_size, sizes.hidden_size) for seed in range(SEEDS)]
            for kind in KINDS
        }
        trained = train_cells(recipe, data, options.runs, options.cache, torch.device(options.device))
    except (CaptionModelError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    used = data.split("train")
    text = page(start, trained, recipe, len(used), ", ".join(dict.fromkeys(p.source for p in used)))
    plot(start, trained, options.runs, options.docs / "images" / "cells.png")
    (options.docs / "cells.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
