from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from training import distributed
from training.commands.arguments import add_cache, add_choose, add_data, join


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    for add in (add_data, add_cache, add_choose):
        add(made)
    return made


def test_what_several_commands_take() -> None:
    options = parser().parse_args(["--data", "a", "b:val=3", "--choose", "a=0.3", "b=2"])
    assert options.data == ["a", "b:val=3"]
    assert dict(options.choose) == {"a": 0.3, "b": 2.0}
    assert options.cache == Path("cache")
    assert parser().parse_args(["--data", "a"]).choose == []


@pytest.mark.parametrize(
    "arguments", [[], ["--data"], ["--data", "a", "--choose", "a"], ["--data", "a", "--choose", "a=x"]]
)
def test_what_is_no_argument_ends_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(arguments)
    assert "usage: " in capsys.readouterr().err


def test_alone_a_command_runs_where_it_is_told() -> None:
    assert join("cpu") == torch.device("cpu")
    assert distributed.world_size() == 1
