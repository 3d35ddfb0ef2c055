"""The recurrent cells compared: docs/cells.md and its plots.

First, how much of the first input reaches step t: the norm of the gradient of s_t with respect to
x_1. Then a task in which memory over many steps decides: to say the first word again after t others. Then
decoders of each cell, and one without attention, trained on pictures with the same small budget. Without
`--data` the third is left as it stands in the page.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.cells import CELLS, Cell
from model.checkpoint import load_captioner
from model.config import CellKind
from training.config import Recipe
from training.data import CaptionData
from training.loop import train
from training.validation import best_epoch

log = logging.getLogger("training.compare_cells")

KINDS: tuple[CellKind, ...] = ("rnn", "gru", "lstm", "lstm-peephole")
PLAIN = "lstm, no attention"  # the plain one-to-many network: the picture is the first state
DECODERS: Mapping[str, Mapping[str, Any]] = {
    **{kind: {"cell": kind} for kind in KINDS},
    PLAIN: {"cell": "lstm", "attention_heads": 0, "sentinel": False, "feed_attention": False},
}
COLOURS = dict(zip(DECODERS, ("#d55e00", "#009e73", "#0072b2", "#000000", "#cc79a7"), strict=True))  # for every eye
STEPS = 50
SHOWN = (1, 2, 5, 10, 20, 30, 50)  # the tables' steps
SEEDS = 5  # fresh cells, for the gradients at initialisation
TRAINED_SEEDS = 3  # cells and decoders that are trained
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t for 95 %, by how many values there are
PICTURES = "## The same small budget for each decoder"  # the page from here on is written only with pictures

Norms = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MemoryTask:
    """To say the first word again at every step, while other words keep coming."""

    words: int = 16  # that may come first, and as many others that follow
    embed_size: int = 16
    hidden_size: int = 32
    batch: int = 32
    updates: int = 400
    learning_rate: float = 5e-3
    test: int = 500  # sequences


@dataclass(frozen=True, slots=True)
class Trained:
    """Decoders of one kind after training, one a seed; `norms` (STEPS,), relative to step 1, their geometric mean."""

    parameters: int
    epochs: Sequence[int]
    losses: Sequence[float]
    ciders: Sequence[float]
    norms: Norms
    curves: Sequence[Sequence[float]]  # CIDEr by epoch


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


def remember(kind: CellKind, task: MemoryTask, seed: int) -> Norms:
    """How often a cell trained on `task` still says the right first word at step t, (STEPS,): 0 to 1."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    embedding = nn.Embedding(2 * task.words, task.embed_size)
    cell = CELLS[kind](task.embed_size, task.hidden_size)
    output = nn.Linear(task.hidden_size, task.words)
    parameters = [p for module in (embedding, cell, output) for p in module.parameters()]
    optimiser = torch.optim.Adam(parameters, task.learning_rate)

    def logits(count: int) -> tuple[Tensor, Tensor]:
        """Fresh sequences -> logits (B, T, words), and which word was first (B, T)."""
        first = torch.randint(task.words, (count, 1), generator=generator)
        others = torch.randint(task.words, 2 * task.words, (count, STEPS - 1), generator=generator)
        hidden, _ = cell.run(embedding(torch.cat([first, others], 1)), cell.initial_state(count))
        return output(hidden), first.expand(-1, STEPS)

    for _ in range(task.updates):
        said, first = logits(task.batch)
        optimiser.zero_grad()
        F.cross_entropy(said.flatten(0, 1), first.flatten()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    with torch.no_grad():
        said, first = logits(task.test)
        right: Norms = (said.argmax(-1) == first).double().mean(0).numpy()
    return right


def train_decoders(
    recipe: Recipe, data: CaptionData, runs: Path, cache: Path, device: torch.device
) -> dict[str, Trained]:
    """Run the recipe for each decoder and seed (a run that is finished already is only read): what came out."""
    trained: dict[str, Trained] = {}
    for name, changes in DECODERS.items():
        decoder = replace(recipe.model.decoder, **changes)
        rows, norms, curves = [], [], []
        for seed in range(recipe.train.seed, recipe.train.seed + TRAINED_SEEDS):
            mine = replace(recipe, model=replace(recipe.model, decoder=decoder), train=replace(recipe.train, seed=seed))
            log.info("training: %s, seed %d", name, seed)
            run = runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            captioner = load_captioner(train(mine, data, run, cache, device))
            history: list[dict[str, Any]] = json.loads((run / "history.json").read_text())
            rows.append(best_epoch(history))
            curves.append([_cider(epoch) for epoch in history])
            # Real captions, one after the other, as the trained layer's inputs.
            words = [i for p in data.split("val")[:STEPS] for i in captioner.vocabulary.encode(p.captions[0])][:STEPS]
            norms.append(relative(reach(captioner.decoder.layer1, captioner.decoder.embedding.weight[words])))
        trained[name] = Trained(
            sum(p.numel() for p in captioner.decoder.parameters()),
            [row["epoch"] for row in rows],
            [row["val_loss"] for row in rows],
            [_cider(row) for row in rows],
            _geometric_mean(norms),
            curves,
        )
    return trained


def interval(values: Sequence[float] | Norms) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t."""
    return float(T95[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5)


def cells_section(
    start: dict[str, list[Norms]], remembered: dict[str, list[Norms]], sizes: tuple[int, int], task: MemoryTask
) -> list[str]:
    """docs/cells.md as far as it needs no pictures."""
    return [
        "# The recurrent cells, compared",
        "",
        "Written by `python -m training.commands.compare_cells --data SET`; change that, not this. Without `--data` it "
        "writes anew what comes before the pictures.",
        "",
        "![How much of the first input reaches step t, and how often the first word is said again](images/memory.png)",
        "",
        "## How much of the first input reaches step t",
        "",
        "The norm of the gradient of the state s_t with respect to the first input, divided by its value at t = 1.",
        f"Fresh cells ({sizes[0]} inputs, {sizes[1]} states), geometric mean of {SEEDS} seeds:",
        "",
        *_table({kind: [f"{v:.2g}" for v in _geometric_mean(norms)] for kind, norms in start.items()}),
        "",
        "A plain RNN multiplies by the same matrix and a slope below one at every step, so the gradient falls "
        "geometrically. The LSTM's cell state is only scaled, by its forget gate, whose bias starts at 1 and which so "
        "starts three quarters open (σ(1) = 0.73); the GRU's update gate starts half open (σ(0) = 0.5). Peepholes "
        "start at zero: a fresh peephole LSTM is a fresh LSTM.",
        "",
        "## Saying the first word again",
        "",
        f"A task in which memory decides, and nothing else. One of {task.words} words comes first, then "
        f"{STEPS - 1} others at random, and at every step the first word is to be said again. Each cell "
        f"({task.hidden_size} states) learns it from {task.updates} batches of {task.batch} sequences. How often it is "
        f"right at step t on {task.test} fresh ones, in per cent, mean of {TRAINED_SEEDS} seeds with its 95 % interval "
        f"(by chance: {100 / task.words:.1f}):",
        "",
        *_table(
            {
                kind: [f"{100 * np.mean(v):.0f} ± {100 * interval(v):.0f}" for v in np.stack(rights, 1)]
                for kind, rights in remembered.items()
            }
        ),
        "",
        "",
    ]


def pictures_section(trained: dict[str, Trained], recipe: Recipe, pictures: int, source: str) -> list[str]:
    """docs/cells.md from `PICTURES` on."""
    first, last = recipe.train.seed, recipe.train.seed + TRAINED_SEEDS - 1
    return [
        PICTURES,
        "",
        "![How much of the first input reaches step t after training, and validation CIDEr by epoch](images/cells.png)",
        "",
        f"Recipe `{recipe.name}`, seeds {first} to {last}: {recipe.train.epochs} epochs on {pictures} pictures of "
        f"{source} with a frozen {recipe.model.encoder.name}; validation of the best epoch, beam "
        f"{recipe.model.search.beam_size}. Means of the seeds with their 95 % intervals. `{PLAIN}` is the plain "
        "one-to-many network: the picture is its first state, and words are all it sees after.",
        "",
        "| decoder | parameters | validation loss | validation CIDEr | epochs |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {result.parameters / 1e6:.2f} M "
            f"| {np.mean(result.losses):.3f} ± {interval(result.losses):.3f} "
            f"| {np.mean(result.ciders):.1f} ± {interval(result.ciders):.1f} | {', '.join(map(str, result.epochs))} |"
            for name, result in trained.items()
        ),
        "",
        "Captions are some ten words long, and attention shows the picture anew at every step: little must be "
        "remembered over many steps, so a longer reach need not show in these figures. How much of the first input "
        "reaches step t in the first layer of each, reading real captions:",
        "",
        *_table({name: [f"{v:.2g}" for v in result.norms] for name, result in trained.items()}),
        "",
    ]


def plot_cells(start: dict[str, list[Norms]], remembered: dict[str, list[Norms]], file: Path) -> None:
    """Two panels: gradients at the start, and how long the first word is remembered."""
    figure, (left, right) = _panels()
    steps = np.arange(1, STEPS + 1)
    for kind in KINDS:
        norms, rights = np.stack(start[kind]), 100 * np.stack(remembered[kind])
        left.plot(steps, _geometric_mean(norms), label=kind, **_style(kind))
        left.fill_between(steps, norms.min(0), norms.max(0), color=COLOURS[kind], alpha=0.15, linewidth=0)
        half = np.array([interval(values) for values in rights.T])
        right.plot(steps, rights.mean(0), label=kind, **_style(kind))
        low, high = (np.clip(rights.mean(0) + sign * half, 0, 100) for sign in (-1, 1))
        right.fill_between(steps, low, high, color=COLOURS[kind], alpha=0.15, linewidth=0)
    _reach_axes(left, "fresh cells")
    right.set(title="saying the first word again", xlabel="step t", ylabel="right, %", ylim=(0, 102))
    _save(figure, (left, right), file)


def plot_pictures(trained: dict[str, Trained], file: Path) -> None:
    """Two panels: gradients after training, CIDEr by epoch."""
    figure, (left, right) = _panels()
    for name, result in trained.items():
        left.plot(np.arange(1, STEPS + 1), result.norms, label=name, **_style(name))
        for curve in result.curves:
            right.plot(range(1, len(curve) + 1), curve, marker="o", markersize=3, alpha=0.7, **_style(name))
    _reach_axes(left, "after training")
    right.set(title=f"decoders at the same budget, {TRAINED_SEEDS} seeds", xlabel="epoch", ylabel="validation CIDEr")
    right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    _save(figure, (left, right), file)


def _panels() -> Any:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    return plt.subplots(1, 2, figsize=(10, 4), layout="constrained")


def _style(name: str) -> dict[str, Any]:
    return {"color": COLOURS[name], "linestyle": "--" if name == "lstm-peephole" else "-"}


def _reach_axes(axes: Any, title: str) -> None:
    axes.set(title=title, xlabel="step t", ylabel="|ds_t/dx_1| / |ds_1/dx_1|", yscale="log")


def _save(figure: Any, panels: Sequence[Any], file: Path) -> None:
    from matplotlib import pyplot as plt

    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _cider(epoch: Mapping[str, Any]) -> float:
    """An epoch's CIDEr on the first validation set."""
    return float(next(iter(epoch["val_cider"].values())))


def _geometric_mean(norms: Sequence[Norms] | Norms) -> Norms:
    mean: Norms = np.exp(np.mean(np.log(norms), 0))
    return mean


def _table(rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Rows of a value for each of `STEPS`, at the steps in `SHOWN`."""
    head = "| cell | " + " | ".join(f"t = {t}" for t in SHOWN) + " |"
    lines = [f"| {name} | " + " | ".join(values[t - 1] for t in SHOWN) + " |" for name, values in rows.items()]
    return [head, "|---" * (len(SHOWN) + 1) + "|", *lines]
