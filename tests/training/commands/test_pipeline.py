from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.commands import pipeline
from training.commands.pipeline import PIPELINES, main, read_steps
from training.config import find_recipe

FILE = """
steps = ["train --recipe a --data $SETS", '''tags runs/a/best
    --data $SETS''', "release runs/a --name it"]

[values]
SETS = "one 'two words'"
"""


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run: each command with its arguments; `fails` in them ends one with 3."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        ran.append([command[2].removeprefix("training.commands."), *command[3:]])
        return SimpleNamespace(returncode=3 if "fails" in command else 0)

    monkeypatch.setattr(pipeline.subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(FILE)
    return ran


def test_steps_run_in_order_with_their_values(ran: list[list[str]]) -> None:
    assert main(["my.toml"]) == 0
    assert ran == [
        ["train", "--recipe", "a", "--data", "one", "two words"],
        ["tags", "runs/a/best", "--data", "one", "two words"],
        ["release", "runs/a", "--name", "it"],
    ]


def test_what_is_done_is_not_done_again_unless_it_has_changed(ran: list[list[str]]) -> None:
    Path("my.toml").write_text(FILE.replace("runs/a/best", "fails"))
    assert main(["my.toml"]) == 3
    assert [command for command, *_ in ran] == ["train", "tags"]
    ran.clear()
    Path("my.toml").write_text(FILE)
    assert main(["my.toml"]) == 0
    assert [command for command, *_ in ran] == ["tags", "release"]
    ran.clear()
    assert main(["my.toml"]) == 0
    assert ran == []
    assert main(["my.toml", "--set", "SETS=another"]) == 0
    assert [command for command, *_ in ran] == ["train", "tags", "release"]


def test_steps_can_be_looked_at(ran: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["my.toml", "--steps"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "train --recipe a --data one 'two words'"
    assert ran == []


@pytest.mark.parametrize(
    ("content", "arguments", "word"),
    [(None, [], "no pipeline"), ("x = 1", [], "steps"), ("steps = ['train $NO']", [], "NO"), ("", [], "steps"),
     (FILE, ["--set", "SET=x"], "values: SETS")],
)  # fmt: skip
def test_what_is_wrong_is_said(
    content: str | None, arguments: list[str], word: str, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.toml").unlink() if content is None else Path("my.toml").write_text(content)
    assert main(["my.toml", *arguments]) == 1
    assert word in capsys.readouterr().err
    assert ran == []


@pytest.mark.parametrize("file", sorted(PIPELINES.glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_pipelines_name_what_is_there(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = read_steps(file, {})
    assert steps[-1][0] == "release"
    for command, *arguments in steps:
        options = dict(itertools.pairwise(arguments))
        if "--recipe" in options:
            find_recipe(options["--recipe"])
        if "--notes" in options:
            assert (PIPELINES.parents[1] / options["--notes"]).is_file()
        with pytest.raises(SystemExit):
            importlib.import_module(f"training.commands.{command}").main(["--help"])
        offered = capsys.readouterr().out
        assert [word for word in arguments if word.startswith("--") and word not in offered] == []
