from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import load_captioner
from model.errors import ConfigError
from tests.training.shapes import write_shapes
from tests.training.studies.tables import TABLE, bench_of, result_of, write
from tests.training.tiny import CPU, recipe, shapes
from training.config import Recipe
from training.data import CaptionData, read
from training.finishing.interpolate import SHARES, between
from training.loop import train
from training.studies import ablate
from training.studies.ablate import Bench, Row, Table, limited, read_record, read_table
from training.studies.ablation_page import facts

MEANS = """
[rows."read first"]
sentences = 30
[rows."more, looking at tags"]
init = "base"
model.decoder.tag_slots = 2
"""


def test_rows_change_the_base_and_are_told_apart(tmp_path: Path) -> None:
    table = read_table(write(tmp_path))
    assert [(row.name, table.section(row)) for row in table.rows] == [
        ("base", "training"), ("second seed", "training"), ("fed pieces", "training"), ("left alone", "sets"),
        ("more", "steps"), ("pupil", "steps"), ("in between", "steps"), ("from there", "steps"), ("together", "steps"),
        ("greedy", "search"),
    ]  # fmt: skip
    base, _, fed, left, _, pupil, _, _, together, greedy = table.rows
    assert (pupil.needs, together.needs, greedy.needs) == (("more", "base", "more"), ("base", "in between"), ())
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
        ("[base", "ablation.toml"),
        ("[base]\n[rows.x]\ninit = 'y'\n[rows.y]\nmin_count = 2", "row 'x' needs 'y', which is no row above it"),
        ("[base]\n[rows.x]\nbetween = ['base', 'y']\n[rows.y]\nmin_count = 2", "row 'x' needs 'y', which is no row"),
        ("[base]\n[rows.x]\nensemble = ['base', 'z']", "row 'x' needs 'z', which is no row above it"),
        (
            "[base]\n[rows.x]\nensemble = ['base']\n[rows.y]\ninit = 'x'",
            "'x', which is no row .* that has a model",
        ),
        ("[base]\n[rows.x]\nbetween = ['base']", "row 'x' must be between two rows"),
        ("[base]\n[rows.x]\nensemble = ['base']\nmin_count = 2", "row 'x' only joins other rows' models"),
    ],
)
def test_mistakes_are_errors(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_table(write(tmp_path, text))


@pytest.mark.parametrize("file", [ablate.ROWS, ablate.ROWS.with_name("everyday.toml")], ids=lambda file: file.stem)
def test_the_tables_that_ship_are_valid_and_every_row_is_another(file: Path) -> None:
    table = read_table(file)
    assert len({replace(row, name="", change="") for row in table.rows}) == len(table.rows)
    assert {table.section(row) for row in table.rows} <= set(ablate.SECTIONS)
    assert len(table.seeds()) == 2


def test_limits_are_of_each_set_and_a_row_may_name_its_sets(tmp_path: Path) -> None:
    for seed, (name, count) in enumerate((("left", 9), ("right", 4))):
        write_shapes(tmp_path / name, train=count, val=5, test=1, size=32, seed=seed)
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
    bench = bench_of(tmp_path)
    base, greedy = bench.table.rows[0], bench.table.rows[-1]
    first = bench.run(greedy)
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"base", "greedy"}
    monkeypatch.setattr(ablate, "train", None)
    monkeypatch.setattr(ablate.ensemble, "evaluate", None)
    assert bench.run(greedy) == first
    assert bench.run(base).pictures == first.pictures == 20
    assert first.scored == {"shapes": 5}
    # Its run folder says so too, where the record does not.
    bench.record.unlink()
    assert bench.run(greedy) == first
    assert read_record(bench.record) == {"greedy": first}


def test_a_recorded_row_is_run_again_where_another_needs_its_model(tmp_path: Path) -> None:
    """On another machine the record is there and the checkpoints are not."""
    here = bench_of(tmp_path)
    base, seed, more = (here.table.named(name) for name in ("base", "second seed", "more"))
    first = {row.name: here.run(row) for row in (base, seed)}
    there = replace(here, runs=tmp_path / "there")
    assert {row.name: there.run(row) for row in (base, seed)} == first
    assert not there.runs.exists()
    there.run(more)
    assert {folder.name for folder in there.runs.iterdir()} == {"base", "more"}
    record = read_record(there.record)
    assert list(record) == ["base", "second seed", "more"]
    assert record["second seed"] == first["second seed"]
    assert record["base"].history == first["base"].history  # the same run
    assert record["base"].seconds != first["base"].seconds  # done again
    # A run that broke off has a checkpoint, but is none to go on from.
    (there.runs / "base" / "result.json").unlink()
    again = there.model("base")
    assert again == there.runs / "base" / "best"
    assert read_record(there.record)["base"].seconds != record["base"].seconds


def test_a_row_brings_the_rows_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(tmp_path)
    given = []

    def watched(recipe: Recipe, *arguments: Any) -> Path:
        given.append(arguments[-2:])
        return train(recipe, *arguments)

    monkeypatch.setattr(ablate, "train", watched)
    bench.run(bench.table.named("pupil"))
    base, more = (tmp_path / "runs" / name / "best" for name in ("base", "more"))
    assert given == [(None, []), (base, []), (more, [base, more])]


def test_a_row_that_has_become_another_is_run_again_and_its_old_result_is_not_shown(tmp_path: Path) -> None:
    data, record = shapes(tmp_path), tmp_path / "ablation.json"
    before, after = (Table((Row("base", recipe(epochs=1, seed=seed), ""),), {}) for seed in (0, 1))
    benches = [Bench(table, data, tmp_path / "runs", tmp_path / "cache", CPU, record) for table in (before, after)]
    old = benches[0].run(before.rows[0])
    assert before.known(read_record(record)) == {"base": old}
    assert after.known(read_record(record)) == {}
    assert benches[1].here(after.rows[0]) is None
    new = benches[1].run(after.rows[0])
    assert after.known(read_record(record)) == {"base": new}
    assert before.known(read_record(record)) == {}
    assert new.history != old.history


def test_a_change_of_anything_a_result_depends_on_is_noticed() -> None:
    base = Row("base", recipe(), "")
    table = Table((base,), {"train": 20})
    result = result_of(table, base, 1.0)
    assert table.is_of(replace(base, name="another name", change="in other words"), result)
    changes: list[dict[str, Any]] = [
        {"recipe": recipe(seed=1)}, {"train_sets": ("a",)}, {"init": "x"}, {"teachers": ("x",)},
        {"between": ("x", "y")}, {"ensemble": ("x", "y")},
    ]  # fmt: skip
    assert not any(table.is_of(replace(base, **change), result) for change in changes)
    assert not replace(table, limits={"train": 21}).is_of(base, result)


def test_a_result_from_before_a_choice_existed_stood_at_its_default() -> None:
    two = recipe()
    one = replace(two, model=replace(two.model, decoder=replace(two.model.decoder, layers=1)))
    table = Table((Row("base", two, ""), Row("one layer", one, "")), {})
    of = table.of(table.rows[0])
    del of["recipe"]["model"]["decoder"]["layers"], of["ensemble"]
    old = replace(result_of(table, table.rows[0], 1.0), of=of)
    assert [table.is_of(row, old) for row in table.rows] == [True, False]
    of["recipe"]["model"]["decoder"]["magic"] = True  # and one that is no more cannot be repeated
    assert not table.is_of(table.rows[0], old)


def test_rows_that_train_nothing(tmp_path: Path) -> None:
    """Between two models, several together, a search: all are scored as the models' own rows are."""
    bench = bench_of(tmp_path)
    base, more, middle = (bench.run(bench.table.named(name)) for name in ("base", "more", "in between"))
    assert [epoch["share"] for epoch in middle.history] == list(SHARES)
    for row, epoch in ((base, middle.history[0]), (more, middle.history[-1])):
        assert epoch["val_loss"] == pytest.approx(row.best["val_loss"], rel=0.02)  # in bf16, float16 weights
    best = bench.model("in between")
    ends = (load_captioner(bench.model(name)) for name in ("base", "more"))
    expected = between(*ends, middle.best["share"]).state_dict()
    for name, value in load_captioner(best).state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=2e-3, rtol=2e-3)
    assert bench.run(bench.table.named("from there")).history[0]["train_loss"] > 0
    together = bench.run(bench.table.named("together"))
    (epoch,) = together.history
    assert epoch["epoch"] == 0
    assert together.pictures == base.pictures
    assert not (bench.runs / "together" / "best").exists()
    # A search as the base's own says what the base said.
    same = replace(bench.table, rows=(*bench.table.rows, Row("same", bench.table.rows[0].recipe, "the same")))
    said = replace(bench, table=same).run(same.named("same")).best
    assert said["val_cider"] == pytest.approx(base.best["val_cider"], abs=1)
    assert said["val_loss"] == pytest.approx(base.best["val_loss"], rel=1e-3)


def test_rows_that_read_first_or_look_at_tags(tmp_path: Path) -> None:
    data = shapes(tmp_path)
    table = read_table(write(tmp_path, TABLE + MEANS))
    read_first, tagged = table.rows[-2:]
    assert (table.section(read_first), table.section(tagged)) == ("sets", "steps")
    sentences = [(f"a purple horse of {i} hands", f"a horse of {i}") for i in range(20)]
    bench = Bench(table, data, tmp_path / "runs", tmp_path / "cache", CPU, tmp_path / "ablation.json", sentences)
    base, read, looking = (bench.run(row) for row in (table.rows[0], read_first, tagged))
    assert base.interval is None
    for row, result in ((read_first, read), (tagged, looking)):
        assert result.interval is not None
        low, high = result.interval
        change = facts(table, {"base": base, row.name: result})[1]["to_base"]
        assert low - 1 <= change <= high + 1  # the interval is of weights rounded to float16
    assert "purple" in load_captioner(bench.model("read first")).vocabulary.words
    assert load_captioner(bench.model("more, looking at tags")).config.decoder.tag_slots == 2
    with pytest.raises(ConfigError, match="a row learns from 30 sentences, and --text has 0"):
        replace(bench, runs=tmp_path / "other", record=tmp_path / "other.json", lines=())._run(read_first)


def test_an_interval_is_of_pictures_in_pairs_and_sets_by_their_weight(tmp_path: Path) -> None:
    weighed = replace(recipe(), choose={"a": 3.0, "b": 1.0})
    table = Table((Row("base", weighed, ""), Row("other", replace(weighed, min_count=2), "")), {})
    bench = Bench(table, CaptionData((), {}), tmp_path, tmp_path, CPU, tmp_path / "record.json")
    noise = np.random.default_rng(0).normal(50, 30, 400)
    for name, by in (("base", 0.0), ("other", 4.0)):
        (tmp_path / name).mkdir()
        figures = {"a": (noise + by).tolist(), "b": [1.0 + 3 * by] * 7}
        (tmp_path / name / "ciders.json").write_text(json.dumps(figures))
    # Each picture gains 4 or 12, so nothing is left to chance, however much pictures differ.
    assert bench._interval(tmp_path / "other") == pytest.approx((6.0, 6.0))
    assert bench._interval(tmp_path / "base") is None
    (tmp_path / "base" / "ciders.json").unlink()
    assert bench._interval(tmp_path / "other") is None
