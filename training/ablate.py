"""What each choice is worth: `python -m training.ablate --data SET` writes docs/ablation.md and its curves.

Every row of recipes/ablation.toml is the base recipe with one thing changed, trained on the same small
budget. Rows that were run before are only read, so the table grows over as many sittings as it takes.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from model.config import override
from model.errors import CaptionModelError, ConfigError
from training.config import RECIPES, Recipe
from training.data import DataError, read
from training.train import best_epoch, train

log = logging.getLogger("training.ablate")


@dataclass(frozen=True, slots=True)
class Row:
    """A trained row: what it changes, and its epochs as `training.train` recorded them."""

    name: str
    change: str
    history: Sequence[Mapping[str, Any]]

    @property
    def best(self) -> Mapping[str, Any]:
        """The epoch with the best validation CIDEr on the first data set."""
        return best_epoch(self.history)


def recipes_of(file: Path) -> dict[str, tuple[Recipe, str]]:
    """Row name -> its recipe, and what it changes in words of the recipe; raises `ConfigError`."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        base, rows = content["base"], content["rows"]
    except (FileNotFoundError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ConfigError(f"{file}: {error!r}; it needs the tables [base] and [rows]") from error
    common = override(Recipe(name="ablation"), base)
    return {name: (override(common, change), _in_words(change)) for name, change in rows.items()}


def _in_words(change: Mapping[str, Any], prefix: str = "") -> str:
    parts = [
        _in_words(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"`{prefix}{key} = {json.dumps(value)}`"
        for key, value in change.items()
    ]
    return ", ".join(parts)


def page(rows: Sequence[Row], recipe: Recipe, pictures: int) -> str:
    """docs/ablation.md."""
    sources = list(rows[0].best["val_cider"])
    base = rows[0].best["val_cider"][sources[0]]
    lines = [
        "# What each choice is worth",
        "",
        f"Made by `python -m training.ablate`. Every row is the base recipe with one thing changed, trained for "
        f"{recipe.train.epochs} epochs on {pictures} pictures; figures are of the epoch with the best validation "
        f"CIDEr. The budget is small: rows show directions, not what a full run reaches, and differences as small "
        f"as that between the seeds mean nothing.",
        "",
        f"| row | change | {' | '.join(f'CIDEr {s}' for s in sources)} | to base | loss | distinct | repeats |",
        f"|{'---|' * (len(sources) + 6)}",
    ]
    for row in rows:
        cider = row.best["val_cider"]
        lines.append(
            f"| {row.name} | {row.change or '-'} | {' | '.join(f'{cider[s]:.1f}' for s in sources)} | "
            f"{cider[sources[0]] - base:+.1f} | {row.best['val_loss']:.3f} | {row.best['distinct']} | "
            f"{100 * row.best['val_repeated']:.1f} % |"
        )
    lines += [
        "",
        "CIDEr: percent, free-running beam search on validation pictures (`training.cider`). Loss: cross-entropy a "
        "word under teacher forcing. Distinct: different captions. Repeats: captions with a bigram said twice.",
        "",
        "![Validation CIDEr by epoch](images/ablation.png)",
        "",
    ]
    return "\n".join(lines)


def plot(rows: Sequence[Row], file: Path) -> None:
    """Validation CIDEr by epoch, a line a row."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for row in rows:
        ciders = [next(iter(epoch["val_cider"].values())) for epoch in row.history]
        axes.plot(range(1, len(ciders) + 1), ciders, marker="o", markersize=3, linewidth=2 if row is rows[0] else 1,
                  label=row.name)  # fmt: skip
    axes.set(xlabel="epoch", ylabel="validation CIDEr, percent")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=7, ncols=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.ablate", description="Make the ablation table.")
    parser.add_argument("--data", required=True, nargs="+", help="caption sets, the first decides; PATH[:val=N,seed=S]")
    parser.add_argument("--rows", type=Path, default=RECIPES / "ablation.toml", help="TOML with [base] and [rows]")
    parser.add_argument("--only", nargs="+", help="names of rows to train now; the table shows all that are trained")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the runs go")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where features are kept (default: cache)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where ablation.md and its plot go")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        recipes = recipes_of(options.rows)
        unknown = set(options.only or ()) - set(recipes)
        if unknown:
            raise ConfigError(f"no row {sorted(unknown)[0]!r}; rows: {', '.join(recipes)}")
        data = read(*options.data)
        rows = []
        for name, (recipe, change) in recipes.items():
            run = options.runs / re.sub(r"\W+", "-", name)
            if options.only is None or name in options.only:
                log.info("row: %s", name)
                train(recipe, data, run, options.cache, torch.device(options.device), None)
            if (run / "history.json").is_file():
                rows.append(Row(name, change, json.loads((run / "history.json").read_text(encoding="utf-8"))))
    except (CaptionModelError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = page(rows, next(iter(recipes.values()))[0], len(data.split("train")))
    plot(rows, options.docs / "images" / "ablation.png")
    (options.docs / "ablation.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
