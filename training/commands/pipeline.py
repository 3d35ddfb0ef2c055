"""All steps of a release, one after another: `python -m training.commands.pipeline NAME`.

A pipeline is a TOML file: `steps`, each a command of this package with its arguments, and `values` for the $NAMES in
them. Steps that have been done are not done again, unless their line or one before it has changed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from model.checkpoint import write_json
from model.errors import ConfigError

PIPELINES = Path(__file__).parents[1] / "pipelines"


def read_steps(file: Path, values: Mapping[str, str]) -> list[list[str]]:
    """The steps' words, with `values` in place of the file's own; raises `ConfigError`."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        given = {**content.get("values", {}), **values}
        if unknown := given.keys() - content.get("values", {}).keys():
            raise ConfigError(f"{file} has no value {min(unknown)!r}; values: {', '.join(content.get('values', {}))}")
        return [shlex.split(Template(step).substitute(given)) for step in content["steps"]]
    except FileNotFoundError:
        raise ConfigError(f"no pipeline at {file}") from None
    except (tomllib.TOMLDecodeError, KeyError, ValueError) as error:
        raise ConfigError(f"{file}: {error!r}; it needs `steps`, and `values` for the names in them") from error


def run(steps: Sequence[list[str]], record: Path) -> int:
    """Run the steps that `record` does not say are done, and write them there; the status of one that failed, or 0."""
    done = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []
    pairs = zip(steps, done, strict=False)
    same = next((i for i, (step, before) in enumerate(pairs) if step != before), min(len(steps), len(done)))
    for number, (command, *arguments) in enumerate(steps[same:], same + 1):
        print(f"step {number} of {len(steps)}: {shlex.join((command, *arguments))}", flush=True)
        status = subprocess.run([sys.executable, "-m", f"training.commands.{command}", *arguments], check=False)
        if status.returncode:
            return status.returncode
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, steps[:number])
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.commands.pipeline", description="Make a release.")
    parser.add_argument("name", help="a TOML file, or the name of one in training/pipelines")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="in place of the file's values")
    parser.add_argument("--steps", action="store_true", help="print the steps; run none")
    options = parser.parse_args(arguments)
    named = PIPELINES / f"{options.name}.toml"
    file = named if named.is_file() else Path(options.name)
    try:
        steps = read_steps(file, dict(value.split("=", 1) for value in options.set))
        if options.steps:
            print("\n".join(map(shlex.join, steps)))
            return 0
        return run(steps, Path("runs") / f"{file.stem}.pipeline.json")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the step that was not finished", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
