"""What each choice is worth: `python -m training.ablate --data SET [SET ...]` writes docs/ablation.md, JSON and plot.

Every row of recipes/ablation.toml is the base recipe with one thing changed, on the same small budget. A row
that is done is not run again, so the table grows over as many sittings as it takes; rows that change the
search alone search with the base row's model.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from model.checkpoint import load_captioner, write_json
from model.config import override
from model.errors import CaptionModelError, ConfigError
from training import engine, features
from training.config import RECIPES, Recipe
from training.data import CaptionData, DataError, Picture, read
from training.process import settle
from training.train import best_epoch, train

log = logging.getLogger("training.ablate")

SECTIONS = {
    "training": "What is trained",
    "steps": "Further steps, from another row's model",
    "sets": "Which sets are trained on",
    "search": "How the base row's model is searched",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the recipe, what it changes in words, the sets trained on (none named: all).

    init: the row whose model training starts from, in place of fresh weights. teachers: rows to learn from.
    """

    name: str
    recipe: Recipe
    change: str
    train_sets: tuple[str, ...] = ()
    init: str = ""
    teachers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """What the TOML file asks for: the rows, the base first, and how many pictures of each set, by split."""

    rows: tuple[Row, ...]
    limits: Mapping[str, int]

    def section(self, row: Row) -> str:
        """Which part of the page a row stands in."""
        if row.init or row.teachers:
            return "steps"
        if row.train_sets != self.rows[0].train_sets:
            return "sets"
        return "search" if row.change and _searching(row.recipe, self.rows[0].recipe) == row.recipe else "training"

    def seeds(self) -> list[Row]:
        """The base and the rows that change its seed alone."""
        base = self.rows[0]

        def as_base(row: Row) -> Row:
            recipe = replace(row.recipe, train=replace(row.recipe.train, seed=base.recipe.train.seed))
            return replace(row, recipe=recipe, name=base.name, change=base.change)

        return [row for row in self.rows if as_base(row) == base]

    def named(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True, slots=True)
class Result:
    """What a row gave: its epochs as `training.train` records them, training pictures, wall-clock seconds."""

    history: Sequence[Mapping[str, Any]]
    pictures: int
    seconds: float

    @property
    def best(self) -> Mapping[str, Any]:
        """The epoch with the best validation CIDEr on the first data set."""
        return best_epoch(self.history)


def read_table(file: Path) -> Table:
    """The rows in a TOML file of [base], [rows] and, to use only some pictures, [pictures]; raises `ConfigError`."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        base, rows = content["base"], content["rows"]
    except (FileNotFoundError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ConfigError(f"{file}: {error!r}; it needs the tables [base] and [rows]") from error
    limits = content.get("pictures", {})
    if unknown := (set(content) - {"base", "rows", "pictures"}) | (set(limits) - {"train", "val"}):
        raise ConfigError(f"{file}: unknown key {min(unknown)!r}; tables: base, rows, pictures (train, val)")
    common = override(Recipe(name="ablation"), base)
    made = [Row("base", common, "")]
    for name, change in rows.items():
        changes = {key: value for key, value in change.items() if key not in ("train_sets", "init", "teachers")}
        sets, teachers = (tuple(change.get(key, ())) for key in ("train_sets", "teachers"))
        row = Row(name, override(common, changes), _in_words(change), sets, change.get("init", ""), teachers)
        if replace(row, name="base", change="") == made[0]:
            raise ConfigError(f"{file}: row {name!r} changes nothing")
        if unknown_rows := {row.init, *teachers} - {"", *(earlier.name for earlier in made)}:
            raise ConfigError(f"{file}: row {name!r} needs {min(unknown_rows)!r}, which is no row above it")
        made.append(row)
    return Table(tuple(made), limits)


def limited(data: CaptionData, limits: Mapping[str, int], train_sets: Sequence[str] = ()) -> CaptionData:
    """`data` with the first pictures of each set, as many as `limits` says by split, and only some sets to train on."""
    sources = dict.fromkeys(picture.source for picture in data.pictures)
    if unknown := set(train_sets) - set(sources):
        raise ConfigError(f"no set {min(unknown)!r} to train on; sets: {', '.join(sources)}")
    seen: Counter[tuple[str, str]] = Counter()

    def kept(picture: Picture) -> bool:
        key = picture.source, picture.split
        seen[key] += 1
        trained = picture.split != "train" or not train_sets or picture.source in train_sets
        return trained and seen[key] <= limits.get(picture.split, len(data.pictures))

    return CaptionData(tuple(filter(kept, data.pictures)), data.skipped)


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs rows: where the runs and the cached features go."""

    table: Table
    data: CaptionData
    runs: Path
    cache: Path
    device: torch.device

    def done(self, row: Row) -> Result | None:
        """The result of a row that was run before; `ConfigError` where that row was another then."""
        file = self._folder(row) / "result.json"
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("of") != self._of(row):
            raise ConfigError(f"{file.parent} holds another row than {row.name!r} is now; remove it, or give --runs")
        return Result(**content)

    def run(self, row: Row) -> Result:
        """The row's result, trained or searched for unless it is done."""
        if done := self.done(row):
            return done
        log.info("row: %s", row.name)
        folder = self._folder(row)
        # The rows it needs come first: they have a time of their own.
        if self.table.section(row) == "search":
            pictures = self.run(self.table.rows[0]).pictures
            began = time.monotonic()
            history = [self._search(row)]
        else:
            data = limited(self.data, self.table.limits, row.train_sets)
            pictures = len(data.split("train"))
            init, teachers = self._best(row.init) if row.init else None, [self._best(name) for name in row.teachers]
            began = time.monotonic()
            train(row.recipe, data, folder, self.cache, self.device, init, teachers)
            history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        result = Result(history, pictures, time.monotonic() - began)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", {**asdict(result), "of": self._of(row)})
        (folder / "state.pt").unlink(missing_ok=True)  # only an unfinished run needs it
        return result

    def _search(self, row: Row) -> Mapping[str, Any]:
        """What the base row's best model says under the row's search, as an epoch of a history."""
        captioner = load_captioner(self._best(self.table.rows[0].name)).to(self.device)
        recipe = row.recipe
        frozen = len(captioner.encoder.stages) - recipe.train_stages
        pictures = limited(self.data, self.table.limits).split("val")
        val = features.cached(
            captioner, frozen, pictures, 1, recipe.augment, self.cache, self.device, recipe.train.precision
        )
        found = engine.evaluate(captioner, val, frozen, recipe.model.search, recipe.train)
        return {"epoch": 0, **found.figures()}

    def _best(self, name: str) -> Path:
        """The best checkpoint of another row, which is run first where it was not."""
        row = self.table.named(name)
        self.run(row)
        return self._folder(row) / "best"

    def _folder(self, row: Row) -> Path:
        return self.runs / re.sub(r"\W+", "-", row.name)

    def _of(self, row: Row) -> Any:
        """What a result depends on, as JSON holds it."""
        content = {key: value for key, value in asdict(row).items() if key not in ("name", "change")}
        return json.loads(json.dumps({**content, "limits": dict(self.table.limits)}))


def facts(table: Table, results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """The table's lines, of the rows that have a result, the base first."""
    first = next(iter(results["base"].best["val_cider"]))
    base = results["base"].best["val_cider"][first]
    return [
        {
            "row": row.name, "section": table.section(row), "change": row.change,
            "cider": dict(results[row.name].best["val_cider"]),
            "to_base": results[row.name].best["val_cider"][first] - base,
            "loss": results[row.name].best["val_loss"], "distinct": results[row.name].best["distinct"],
            "repeated": results[row.name].best["val_repeated"], "epoch": results[row.name].best["epoch"],
            "pictures": results[row.name].pictures, "seconds": results[row.name].seconds,
        }
        for row in table.rows if row.name in results
    ]  # fmt: skip


def spread(table: Table, lines: Iterable[Mapping[str, Any]]) -> float | None:
    """How far the base recipe's seeds lie apart on the first set, in CIDEr percent; None with one seed."""
    names = {row.name for row in table.seeds()}
    ciders = [line["to_base"] for line in lines if line["row"] in names]
    return max(ciders) - min(ciders) if len(ciders) > 1 else None


def page(table: Table, lines: Sequence[Mapping[str, Any]], data: CaptionData) -> str:
    """docs/ablation.md."""
    recipe, base = table.rows[0].recipe, lines[0]
    sources = list(base["cider"])
    used = Counter(picture.source for picture in limited(data, table.limits).split("val"))
    scored = ", ".join(f"{count} of {source}" for source, count in used.items())
    apart = spread(table, lines)
    noise = (
        f"Two runs of the base that differ in their seed alone are {apart:.1f} CIDEr apart: smaller differences mean "
        "nothing."
        if apart is not None
        else "One seed only, so nothing tells how much of a difference is chance."
    )
    text = [
        "# What each choice is worth",
        "",
        f"Written by `python -m training.ablate`; change that, not this. Budget of a row: {recipe.train.epochs} epochs "
        f"on {base['pictures']} pictures, {recipe.train.captions_per_picture} captions each, decoder "
        f"{recipe.model.decoder.hidden_size} wide on {recipe.model.encoder.name}; "
        f"{sum(line['seconds'] for line in lines) / 60:.0f} minutes for all rows here. Every row is the base recipe "
        "with one thing changed, and its figures are of the epoch with the best validation CIDEr. On so small a budget "
        f"what learns quickly looks best: rows show directions, not what a full run reaches. {noise}",
        "",
        "![Change in validation CIDEr against the base, and CIDEr by epoch](images/ablation.png)",
        "",
    ]
    for section, title in SECTIONS.items():
        mine = [line for line in lines if line["section"] == section]
        if not mine:
            continue
        mine = mine if base in mine else [base, *mine]
        text += [
            f"## {title}",
            "",
            f"| row | change | {' | '.join(f'CIDEr {s}' for s in sources)} | to base | loss | distinct | repeats "
            "| pictures | seconds |",
            f"|{'---|' * (len(sources) + 8)}",
        ]
        text += [
            f"| {line['row']} | {line['change'] or '-'} | "
            f"{' | '.join(format(line['cider'][source], '.1f') for source in sources)} | "
            f"{line['to_base']:+.1f} | {line['loss']:.3f} | {line['distinct']} | {100 * line['repeated']:.1f} % | "
            f"{line['pictures']} | {line['seconds']:.0f} |"
            for line in mine
        ]
        text.append("")
    text += [
        f"CIDEr: percent, free-running search on validation pictures ({scored}; `training.cider`). "
        "To base: the change on the first set. Loss: cross-entropy a token under teacher forcing; that of word pieces "
        "is of other tokens. Distinct: different captions. Repeats: captions with a bigram said twice. "
        "Seconds: wall-clock, with the features that no earlier row had cached.",
        "",
    ]
    return "\n".join(text)


def plot(table: Table, lines: Sequence[Mapping[str, Any]], results: Mapping[str, Result], file: Path) -> None:
    """Two panels: each row's change against the base with the seeds' spread behind it, and CIDEr by epoch."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 2 + 0.24 * len(lines)), layout="constrained")
    shown = sorted(lines[1:], key=lambda line: float(line["to_base"]))
    colours = dict(zip(SECTIONS, ("#0072b2", "#cc79a7", "#009e73", "#d55e00"), strict=True))  # told apart by everyone
    left.barh([line["row"] for line in shown], [line["to_base"] for line in shown],
              color=[colours[line["section"]] for line in shown])  # fmt: skip
    apart = spread(table, lines) or 0.0
    left.axvspan(-apart, apart, color="black", alpha=0.1, linewidth=0)
    left.axvline(0, color="black", linewidth=0.8)
    left.set(xlabel="validation CIDEr, change against the base; grey: two seeds", ylim=(-0.6, max(len(shown), 1) - 0.4))
    for line in lines:
        if line["section"] == "search":
            continue
        history = [next(iter(epoch["val_cider"].values())) for epoch in results[line["row"]].history]
        base = line is lines[0]
        right.plot(range(1, len(history) + 1), history, color="black" if base else colours[line["section"]],
                   linewidth=2.5 if base else 0.8, zorder=3 if base else 2, label="base" if base else None)  # fmt: skip
    right.set(xlabel="epoch", ylabel="validation CIDEr")
    right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.ablate", description="Make the ablation table.")
    parser.add_argument("--data", required=True, nargs="+", help="caption sets, the first decides; PATH[:val=N,seed=S]")
    parser.add_argument("--table", type=Path, default=RECIPES / "ablation.toml", help="TOML with [base] and [rows]")
    parser.add_argument("--rows", nargs="+", help="names of rows to run now; the table shows all that are done")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further row after so long")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the runs go")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where features are kept (default: cache)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where ablation.md, .json and the plot go")
    options = parser.parse_args(arguments)
    settle()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    began = time.monotonic()
    try:
        table = read_table(options.table)
        names = [row.name for row in table.rows]
        if unknown := set(options.rows or ()) - set(names):
            raise ConfigError(f"no row {min(unknown)!r}; rows: {', '.join(names)}")
        data = read(*options.data)
        bench = Bench(table, data, options.runs, options.cache, torch.device(options.device))
        bench.run(table.rows[0])  # all others are compared with it
        for row in table.rows:
            late = time.monotonic() - began > 60 * options.minutes
            if (options.rows is None or row.name in options.rows) and not late:
                bench.run(row)
        results = {row.name: done for row in table.rows if (done := bench.done(row))}
    except (CaptionModelError, DataError, engine.TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last save", file=sys.stderr)
        return 130
    lines = facts(table, results)
    text = page(table, lines, data)
    plot(table, lines, results, options.docs / "images" / "ablation.png")
    write_json(options.docs / "ablation.json", lines)
    (options.docs / "ablation.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _searching(recipe: Recipe, base: Recipe) -> Recipe:
    """The base with the recipe's search."""
    return replace(base, model=replace(base.model, search=recipe.model.search))


def _in_words(change: Mapping[str, Any], prefix: str = "") -> str:
    parts = [
        _in_words(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"`{prefix}{key} = {json.dumps(value)}`"
        for key, value in change.items()
    ]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
