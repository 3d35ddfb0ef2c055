"""Train a captioner: `python -m training.commands.train --recipe R --data SET [SET ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training import distributed
from training.commands.arguments import add_cache, add_data, join
from training.commands.ending import resumable
from training.config import find_recipe
from training.data import read
from training.initialisation import inherited
from training.loop import train
from training.process import configure_process


@resumable
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/train", description="Train a captioner.")
    parser.add_argument("--recipe", required=True, help="a TOML file, or the name of one in training/recipes")
    add_data(parser)
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/<recipe>); resumes what lies there")
    parser.add_argument("--init", type=Path, help="checkpoint folder to start from")
    parser.add_argument("--teacher", type=Path, nargs="+", default=[], help="checkpoints to learn from as an ensemble")
    add_cache(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, help="in place of the recipe's train.seed")
    parser.add_argument("--export", action="store_true", help="export the best checkpoint to RUN/served, to be served")
    parser.add_argument("--check", action="store_true", help="say what the data and the run would be; train nothing")
    options = parser.parse_args(arguments)
    configure_process()
    device = join(options.device)
    recipe = find_recipe(options.recipe, inherited(options.init) if options.init else None)
    if options.seed is not None:
        recipe = replace(recipe, train=replace(recipe.train, seed=options.seed))
    run = options.run or Path("runs") / recipe.name
    data = read(*options.data, check_pictures=options.check)
    if options.check:
        from training.check import report  # it imports this module

        print(report(recipe, data, options.cache, device, options.init, options.teacher))
        return 0
    best = train(recipe, data, run, options.cache, device, options.init, options.teacher)
    first = distributed.is_main()
    distributed.leave()
    if options.export and first:
        from training.commands.export import main as export  # its packages take seconds to load

        return export([str(best), "--data", *options.data, "--to", str(run / "served")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
