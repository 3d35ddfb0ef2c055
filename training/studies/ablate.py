"""What each choice is worth: the rows of a table, run, and the record of what they gave.

Every row of ablation.toml, or of another table, is the base recipe with one thing changed, on the same small budget;
some rows train nothing: they search otherwise with the base row's model, or join the models of rows above. The JSON is
the record: a row that stands there is not run again, so the table grows over as many sittings, on as many machines, as
it takes. Checkpoints stay on the machine that made them, so a row whose model another one needs is run again
where it is missing. Without --data page and plot are made from the record.
"""

from __future__ import annotations

import json
import logging
import re
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoint import load_captioner, save_captioner, write_json
from model.config import override
from model.errors import ConfigError
from training.config import Recipe
from training.data import CaptionData, Picture
from training.finishing.interpolate import SHARES, choose
from training.finishing.tags import give_tags
from training.loop import train
from training.pretraining import pretrain
from training.scoring.metrics import bootstrap, interval
from training.scoring.objects import WORDS
from training.studies import ensemble
from training.validation import best_epoch

log = logging.getLogger("training.ablate")

ROWS = Path(__file__).parent / "ablation.toml"
# Keys of a row that are none of a recipe.
NAMING = ("train_sets", "sentences", "init", "teachers", "between", "ensemble")
TAGS, LEAST, TAG_EPOCHS = 600, 6, 3  # for a decoder that looks at tags: so many, each of six pictures at least
TITLE = "What each choice is worth"
SECTIONS = {
    "training": "What is trained",
    "steps": "Further steps, from other rows' models",
    "sets": "Which sets are trained on",
    "search": "How the base row's model is searched",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the recipe, what it changes in words, the sets trained on (none named: all).

    sentences: so many without pictures are learnt first, each once (`training.pretraining`).
    init: the row whose model training starts from, in place of fresh weights. teachers: rows to learn from.
    between: two rows; weights between those of their models, untrained (`training.finishing.interpolate`).
    ensemble: rows whose models speak together, untrained (`training.studies.ensemble`).
    """

    name: str
    recipe: Recipe
    change: str
    train_sets: tuple[str, ...] = ()
    sentences: int = 0
    init: str = ""
    teachers: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    ensemble: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows whose models this one is made from."""
        return (*((self.init,) if self.init else ()), *self.teachers, *self.between, *self.ensemble)


@dataclass(frozen=True, slots=True)
class Table:
    """What the TOML file asks for: the rows, the base first, and how many pictures of each set, by split."""

    rows: tuple[Row, ...]
    limits: Mapping[str, int]
    title: str = TITLE

    def section(self, row: Row) -> str:
        """Which part of the page a row stands in."""
        if row.needs:
            return "steps"
        if row.train_sets != self.rows[0].train_sets or row.sentences:
            return "sets"
        return "search" if row.change and _searching(row.recipe, self.rows[0].recipe) == row.recipe else "training"

    def speaking(self, row: Row) -> tuple[str, ...]:
        """The rows whose models say what this one is scored by, where it makes no model of its own."""
        return ("base",) if self.section(row) == "search" else row.ensemble

    def of(self, row: Row) -> dict[str, Any]:
        """What a row's result depends on, as JSON holds it."""
        content = {key: value for key, value in asdict(row).items() if key not in ("name", "change")}
        made: dict[str, Any] = json.loads(json.dumps({**content, "limits": dict(self.limits)}))
        return made

    def is_of(self, row: Row, result: Result) -> bool:
        """Whether a result is of the row as it is now; choices that did not exist then stood at their defaults."""
        try:
            then = Row("", override(Recipe(), result.of["recipe"]), "")
        except ConfigError:  # of a choice that is no more
            return False
        return {**self.of(then), **result.of, "recipe": self.of(then)["recipe"]} == self.of(row)

    def known(self, results: Mapping[str, Result]) -> dict[str, Result]:
        """Those of the results that are of rows as they are now."""
        rows = {row.name: row for row in self.rows}
        return {name: result for name, result in results.items() if name in rows and self.is_of(rows[name], result)}

    def seeds(self) -> list[Row]:
        """The base and the rows that change its seed alone."""
        base = self.rows[0]

        def as_base(row: Row) -> Row:
            recipe = replace(row.recipe, train=replace(row.recipe.train, seed=base.recipe.train.seed))
            return replace(row, recipe=recipe, name=base.name, change=base.change)

        return [row for row in self.rows if as_base(row) == base]

    def named(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True, slots=True)
class Result:
    """What a row gave, and of what it is.

    history: its epochs as `training.loop` records them; of weights in between one a share, of what trains
    nothing a single one, numbered 0. pictures: trained on. scored: validation pictures by set. seconds: wall-clock.
    of: see `Table.of`. interval: of the change against the base, 95 % bootstrap over pictures; None where the base's
    captions are not known.
    """

    history: Sequence[Mapping[str, Any]]
    pictures: int
    scored: Mapping[str, int]
    seconds: float
    of: Mapping[str, Any]
    interval: Sequence[float] | None = None

    @property
    def best(self) -> Mapping[str, Any]:
        """The epoch with the best validation CIDEr (`training.validation.score_of`)."""
        return best_epoch(self.history)


def read_table(file: Path) -> Table:
    """The rows in a TOML file of [base], [rows] and, to use only some pictures, [pictures]; raises `ConfigError`."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        base, rows = content["base"], content["rows"]
    except (FileNotFoundError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ConfigError(f"{file}: {error!r}; it needs the tables [base] and [rows]") from error
    limits = content.get("pictures", {})
    if unknown := (set(content) - {"title", "base", "rows", "pictures"}) | (set(limits) - {"train", "val"}):
        raise ConfigError(f"{file}: unknown key {min(unknown)!r}; title, tables: base, rows, pictures (train, val)")
    common = override(Recipe(name="ablation"), {key: value for key, value in base.items() if key != "train_sets"})
    sets = tuple(base.get("train_sets", ()))
    made = [Row("base", common, "", sets)]
    for name, change in rows.items():
        rest = {key: value for key, value in change.items() if key not in NAMING}
        named = {"train_sets": sets} | {key: change[key] for key in NAMING if key in change}
        named = {key: tuple(value) if isinstance(value, list) else value for key, value in named.items()}
        row = Row(name, override(common, rest), _in_words(change), **named)
        above = Table(tuple(made), limits)
        if replace(row, name="base", change="") == made[0]:
            raise ConfigError(f"{file}: row {name!r} changes nothing")
        if (row.between or row.ensemble) and len(change) > 1:
            raise ConfigError(f"{file}: row {name!r} only joins other rows' models, so it has no other key")
        if row.between and len(row.between) != 2:
            raise ConfigError(f"{file}: row {name!r} must be between two rows")
        if unknown_rows := set(row.needs) - {earlier.name for earlier in made if not above.speaking(earlier)}:
            raise ConfigError(
                f"{file}: row {name!r} needs {min(unknown_rows)!r}, which is no row above it that has a model"
            )
        made.append(row)
    return Table(tuple(made), limits, content.get("title", TITLE))


def read_record(file: Path) -> dict[str, Result]:
    """The results that docs/ablation.json holds, by row, also of rows that are others now; none without the file."""
    if not file.is_file():
        return {}
    try:
        lines = json.loads(file.read_text(encoding="utf-8"))
        return {line.pop("row"): Result(**line) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is no record of results: {error!r}") from error


def keep(table: Table, file: Path, name: str, result: Result) -> None:
    """Put a row's result into the record, in place of an older one; rows stand in the order of the table."""
    results = {**read_record(file), name: result}
    order = [row.name for row in table.rows]
    names = sorted(results, key=lambda name: order.index(name) if name in order else len(order))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, [{"row": name, **asdict(results[name])} for name in names])


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
    """Runs rows: where the runs, the cached features and the record of results go.

    lines: of sentences without pictures, each line's of one, of which a row may learn some first.
    """

    table: Table
    data: CaptionData
    runs: Path
    cache: Path
    device: torch.device
    record: Path
    lines: Sequence[Sequence[str]] = ()

    def run(self, row: Row) -> Result:
        """The row's result: from the record, from a run that lies here, or else trained or searched for now."""
        if known := self.table.known(read_record(self.record)).get(row.name):
            return known
        if here := self.here(row):
            keep(self.table, self.record, row.name, here)
            return here
        return self._run(row)

    def here(self, row: Row) -> Result | None:
        """The result of a finished run of the row as it is now whose folder lies here, and with it its model."""
        try:
            result = Result(**json.loads((self._folder(row) / "result.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, TypeError):  # none, or as an older version of this program wrote them
            return None
        return result if self.table.is_of(row, result) else None

    def model(self, name: str) -> Path:
        """The best checkpoint of another row, which is run where none lies here, be its result known or not."""
        row = self.table.named(name)
        best = self._folder(row) / "best"
        if not (best.is_dir() and self.here(row)):
            self._run(row)
        return best

    def _run(self, row: Row) -> Result:
        folder, recipe = self._folder(row), row.recipe
        data = limited(self.data, self.table.limits, row.train_sets)
        val = data.split("val")
        # The rows it needs come first: they have a time of their own.
        models = {name: self.model(name) for name in (*row.needs, *self.table.speaking(row))}
        log.info("row: %s", row.name)
        (folder / "result.json").unlink(missing_ok=True)  # what it says may be of another row
        began = time.monotonic()
        speaking = [load_captioner(models[name]) for name in self.table.speaking(row)]
        if row.between:
            a, b = (load_captioner(models[name]) for name in row.between)
            best, history = choose(a, b, data, self.cache, SHARES, {})
            save_captioner(best, folder / "best", {"validation": history, "recipe": asdict(recipe)})
        elif not speaking:
            init, teachers = models.get(row.init), [models[name] for name in row.teachers]
            if init and recipe.model.decoder.tag_slots:
                init = self._tagged(init, recipe, data, folder / "tags")
            if row.sentences:
                once = replace(recipe, train=replace(recipe.train, epochs=1))
                lines = self._some_lines(row.sentences)
                init = pretrain(once, data, lines, folder / "sentences", self.device, init)
            train(recipe, data, folder, self.cache, self.device, init, teachers)
            history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        members = speaking or [load_captioner(folder / "best")]
        found = ensemble.evaluate(members, val, self.cache, self.device, recipe.model.search, recipe.train)
        if speaking:
            history = [{"epoch": 0, **found.figures()}]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "ciders.json", {name: each.tolist() for name, each in found.ciders.items()})
        seconds, scored = time.monotonic() - began, Counter(picture.source for picture in val)
        result = Result(
            history, len(data.split("train")), dict(scored), seconds, self.table.of(row), self._interval(folder)
        )
        write_json(folder / "result.json", asdict(result))
        (folder / "state.pt").unlink(missing_ok=True)  # only an unfinished run needs it
        keep(self.table, self.record, row.name, result)
        return result

    def _some_lines(self, sentences: int) -> list[Sequence[str]]:
        """Lines of at least as many sentences, the same for every row."""
        order = np.random.default_rng(0).permutation(len(self.lines)).tolist()
        ends = np.cumsum([0, *(len(self.lines[i]) for i in order)])
        if ends[-1] < sentences:
            raise ConfigError(f"a row learns from {sentences} sentences, and --text has {ends[-1]}")
        return [self.lines[i] for i in order[: np.searchsorted(ends, sentences)]]

    def _tagged(self, init: Path, recipe: Recipe, data: CaptionData, to: Path) -> Path:
        """The checkpoint `init` with tags for the decoder to look at."""
        captioner = load_captioner(init).to(self.device)
        found = give_tags(captioner, data, TAGS, LEAST, WORDS, TAG_EPOCHS, recipe.views, recipe.augment, self.cache,
                          recipe.train.precision)  # fmt: skip
        save_captioner(captioner, to, {"validation": found["history"]})
        return to

    def _interval(self, folder: Path) -> list[float] | None:
        """Of the change in CIDEr from the base to the row in that folder, its 95 % interval over pictures."""
        base = self._folder(self.table.rows[0])
        if folder == base or not (base / "ciders.json").is_file():
            return None
        theirs, mine = (json.loads((f / "ciders.json").read_text(encoding="utf-8")) for f in (base, folder))
        changes = {name: np.array(mine[name]) - np.array(theirs[name]) for name in mine}
        sampled = {name: bootstrap(len(change)) @ change / len(change) for name, change in changes.items()}
        weights = self.table.rows[0].recipe.choose or {next(iter(sampled)): 1.0}
        return list(interval(sum(sampled[name] * weight for name, weight in weights.items()) / sum(weights.values())))

    def _folder(self, row: Row) -> Path:
        return self.runs / re.sub(r"\W+", "-", row.name)


def _searching(recipe: Recipe, base: Recipe) -> Recipe:
    """The base with the recipe's search."""
    return replace(base, model=replace(base.model, search=recipe.model.search))


def _in_words(change: Mapping[str, Any], prefix: str = "") -> str:
    parts = [
        _in_words(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"`{prefix}{key} = {json.dumps(value)}`"
        for key, value in change.items()
    ]
    return ", ".join(parts)
