from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.studies.tables import result_of, write
from tests.training.tiny import recipe
from training.studies.ablate import ROWS, Row, Table, read_record, read_table
from training.studies.ablation_page import curve, facts, page, spread

DOCS = Path(__file__).parents[3] / "docs"


def test_the_base_may_name_its_sets_and_rows_others(tmp_path: Path) -> None:
    text = '[base]\ntrain_sets = ["a"]\n[rows.more]\ntrain_sets = ["a", "b"]\n[rows.rare]\nmin_count = 2\n'
    table = read_table(write(tmp_path, 'title = "Of sets"\n' + text))
    assert [row.train_sets for row in table.rows] == [("a",), ("a", "b"), ("a",)]
    assert [table.section(row) for row in table.rows] == ["training", "sets", "training"]
    results = {row.name: result_of(table, row, 30.0) for row in table.rows}
    results["more"] = replace(results["more"], interval=[-1.25, 3.5])
    text = page(table, results, "of-sets")
    assert text.startswith("# Of sets\n")
    assert "(images/of-sets.png)" in text
    assert "| +0.0 | -1.2 to +3.5 |" in text
    assert "| +0.0 | - |" in text


@pytest.mark.parametrize("name", ["ablation", "everyday"])
def test_a_page_that_ships_is_what_its_record_gives(name: str) -> None:
    table = read_table(ROWS.with_stem(name))
    recorded = read_record(DOCS / f"{name}.json")
    assert table.known(recorded) == recorded
    assert page(table, recorded, name) == (DOCS / f"{name}.md").read_text()


def test_curves_are_of_training_and_stand_at_their_epochs(tmp_path: Path) -> None:
    table = read_table(write(tmp_path))
    curves = {row.name: curve(table, row, result_of(table, row, 3.0, 5.0)) for row in table.rows}
    assert curves.pop("in between") == curves.pop("together") == curves.pop("greedy") == ([], [])
    assert all(curve == ([1, 2], [3.0, 5.0]) for curve in curves.values())
    base = table.rows[0]
    alone = result_of(table, base, 3.0, 5.0)
    assert curve(table, base, replace(alone, history=alone.history[1:])) == ([2], [5.0])


def test_changes_are_against_the_base_and_the_spread_is_of_its_seeds() -> None:
    of = recipe()
    names = ("base", "second seed", "other")
    seed, other = recipe(seed=1), recipe(clip=1.0)
    table = Table(tuple(Row(n, r, "x" * (n != "base")) for n, r in zip(names, (of, seed, other), strict=True)), {})
    ciders = {"base": (30.0, 20.0), "second seed": (28.0, 29.5), "other": (33.0, 3.0)}
    results = {row.name: result_of(table, row, *ciders[row.name]) for row in table.rows}
    lines = facts(table, results)
    assert [line["to_base"] for line in lines] == [0.0, -0.5, 3.0]  # of each row's best epoch
    assert spread(table, lines) == 0.5
    assert spread(table, lines[:1]) is None
