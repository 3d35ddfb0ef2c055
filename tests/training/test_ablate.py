from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.errors import ConfigError
from tests.training.shapes import write_shapes
from tests.training.tiny import CPU, recipe, shapes
from training import ablate
from training.ablate import Bench, Row, Table, facts, limited, main, read_table, spread
from training.config import RECIPES, Recipe
from training.data import read
from training.train import train

TABLE = """
[pictures]
train = 20
val = 5
[base]
encoder_weights = "none"
min_count = 1
[base.model.preprocess]
size = 32
[base.model.decoder]
embed_size = 8
hidden_size = 8
[base.train]
epochs = 1
captions_per_picture = 1
precision = "fp32"
[rows."second seed"]
train.seed = 1
[rows."fed pieces"]
vocabulary = "pieces"
pieces = 30
model.decoder = {feed_attention = true, tied = false}
[rows."left alone"]
train_sets = ["left"]
[rows."more"]
init = "base"
[rows."pupil"]
init = "more"
teachers = ["base", "more"]
train.teacher_share = 0.5
[rows."greedy"]
model.search.beam_size = 1
"""


def write(folder: Path, text: str = TABLE) -> Path:
    file = folder / "table.toml"
    file.write_text(text)
    return file


def test_rows_change_the_base_and_are_told_apart(tmp_path: Path) -> None:
    table = read_table(write(tmp_path))
    assert [(row.name, table.section(row)) for row in table.rows] == [
        ("base", "training"), ("second seed", "training"), ("fed pieces", "training"), ("left alone", "sets"),
        ("more", "steps"), ("pupil", "steps"), ("greedy", "search"),
    ]  # fmt: skip
    base, _, fed, left, _, pupil, greedy = table.rows
    assert (pupil.init, pupil.teachers) == ("more", ("base", "more"))
    assert fed.recipe.model.decoder.feed_attention
    assert fed.recipe.model.decoder.hidden_size == base.recipe.model.decoder.hidden_size == 8
    assert (left.recipe, left.train_sets, left.change) == (base.recipe, ("left",), '`train_sets = ["left"]`')
    assert greedy.change == "`model.search.beam_size = 1`"
    assert [row.name for row in table.seeds()] == ["base", "second seed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rows]", "it needs the tables"),
        ("[base]\n[rows.x]\nmin_cont = 1", "unknown key 'min_cont'"),
        ("[base]\n[rows.x]\nmin_count = 5", "row 'x' changes nothing"),
        ("[base]\n[rows]\n[pictures]\ntest = 3", "unknown key 'test'"),
        ("[base", "table.toml"),
        ("[base]\n[rows.x]\ninit = 'y'\n[rows.y]\nmin_count = 2", "row 'x' needs 'y', which is no row above it"),
    ],
)
def test_mistakes_are_errors(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_table(write(tmp_path, text))


def test_the_table_that_ships_is_valid_and_every_row_is_another() -> None:
    table = read_table(RECIPES / "ablation.toml")
    assert len({replace(row, name="", change="") for row in table.rows}) == len(table.rows)
    assert {table.section(row) for row in table.rows} == set(ablate.SECTIONS)
    assert len(table.seeds()) == 2


def test_limits_are_of_each_set_and_a_row_may_name_its_sets(tmp_path: Path) -> None:
    for name, count in (("left", 9), ("right", 4)):
        write_shapes(tmp_path / name, train=count, val=5, test=1, size=32)
    data = read(tmp_path / "left", tmp_path / "right")

    def counts(*train_sets: str) -> dict[str, list[str]]:
        kept = limited(data, {"train": 6, "val": 3}, train_sets)
        assert all(picture in data.pictures for picture in kept.pictures)
        return {split: [p.source for p in kept.split(split)] for split in ("train", "val")}

    val = ["left"] * 3 + ["right"] * 3  # all sets are scored, whichever are trained on
    assert counts() == {"train": ["left"] * 6 + ["right"] * 4, "val": val}
    assert counts("right") == {"train": ["right"] * 4, "val": val}
    assert limited(data, {}) == data
    with pytest.raises(ConfigError, match="no set 'middle' to train on; sets: left, right"):
        counts("middle")


def test_a_row_that_is_done_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a search row, which trains nothing but the base."""
    table = read_table(write(tmp_path))
    bench = Bench(table, shapes(tmp_path), tmp_path / "runs", tmp_path / "cache", CPU)
    greedy = table.rows[-1]
    first = bench.run(greedy)
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"base", "greedy"}
    monkeypatch.setattr(ablate, "train", None)
    monkeypatch.setattr(ablate.engine, "evaluate", None)
    assert bench.run(greedy) == bench.done(greedy) == first
    assert bench.run(table.rows[0]).pictures == first.pictures == 20


def test_a_row_brings_the_rows_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_table(write(tmp_path))
    bench = Bench(table, shapes(tmp_path), tmp_path / "runs", tmp_path / "cache", CPU)
    given = []

    def watched(recipe: Recipe, *arguments: Any) -> Path:
        given.append(arguments[-2:])
        return train(recipe, *arguments)

    monkeypatch.setattr(ablate, "train", watched)
    bench.run(table.named("pupil"))
    base, more = (tmp_path / "runs" / name / "best" for name in ("base", "more"))
    assert given == [(None, []), (base, []), (more, [base, more])]


def test_a_row_that_has_become_another_is_refused(tmp_path: Path) -> None:
    data = shapes(tmp_path)
    before, after = (Table((Row("base", recipe(epochs=1, seed=seed), ""),), {}) for seed in (0, 1))
    Bench(before, data, tmp_path / "runs", tmp_path / "cache", CPU).run(before.rows[0])
    with pytest.raises(ConfigError, match="holds another row than 'base' is now"):
        Bench(after, data, tmp_path / "runs", tmp_path / "cache", CPU).run(after.rows[0])


def test_a_search_row_that_searches_as_the_base_does_says_the_same(tmp_path: Path) -> None:
    table = read_table(write(tmp_path))
    bench = Bench(table, shapes(tmp_path), tmp_path / "runs", tmp_path / "cache", CPU)
    base = bench.run(table.rows[0]).best
    same = bench._search(table.rows[0])
    assert same["val_cider"] == pytest.approx(base["val_cider"], abs=1)  # the weights were rounded to float16
    assert same["val_loss"] == pytest.approx(base["val_loss"], rel=1e-3)


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
        "base", "second seed", "fed pieces", "base", "more", "pupil", "base", "left alone", "base", "greedy",
    ]  # fmt: skip
    assert {row.count("|") for row in rows} == {11}
    assert "1 epochs on 40 pictures" in text
    lines = json.loads((tmp_path / "docs" / "ablation.json").read_text())
    assert [line["row"] for line in lines] == [row.name for row in read_table(write(tmp_path)).rows]
    assert all(set(line["cider"]) == {"left", "right"} and line["seconds"] > 0 for line in lines)
    assert [line["pictures"] for line in lines] == [40, 40, 40, 20, 40, 40, 40]
    with Image.open(tmp_path / "docs" / "images" / "ablation.png") as image:
        assert image.width > 1000
    assert main([*arguments, "--rows", "nonsense"]) == 1
    assert "no row 'nonsense'; rows: base, second seed" in capsys.readouterr().err


def test_changes_are_against_the_base_and_the_spread_is_of_its_seeds() -> None:
    of = recipe()
    names = ("base", "second seed", "other")
    seed, other = recipe(seed=1), recipe(clip=1.0)
    table = Table(tuple(Row(n, r, "x" * (n != "base")) for n, r in zip(names, (of, seed, other), strict=True)), {})
    epoch = {"epoch": 1, "val_loss": 1.0, "distinct": 2, "val_repeated": 0.0}
    ciders = {"base": (30.0, 20.0), "second seed": (28.0, 29.5), "other": (33.0, 3.0)}
    results = {
        name: ablate.Result([{**epoch, "val_cider": {"a": cider, "b": 1.0}} for cider in ciders[name]], 9, 1.0)
        for name in names
    }
    lines = facts(table, results)
    assert [line["to_base"] for line in lines] == [0.0, -0.5, 3.0]  # of each row's best epoch
    assert spread(table, lines) == 0.5
    assert spread(table, lines[:1]) is None
