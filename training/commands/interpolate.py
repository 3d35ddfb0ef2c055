"""Between two checkpoints: `python -m training.commands.interpolate A B --data SET... --run RUN`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint import load_captioner, save_captioner, write_json
from training.commands.arguments import add_cache, add_choose, add_data
from training.commands.ending import mendable
from training.data import read
from training.finishing.interpolate import SHARES, choose
from training.process import configure_process


@mendable()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.commands.interpolate", description="Between two checkpoints."
    )
    parser.add_argument("a", type=Path, help="checkpoint folder that training started from")
    parser.add_argument("b", type=Path, help="checkpoint folder that it led to")
    add_data(parser)
    parser.add_argument("--run", type=Path, required=True, help="folder for the result, as training.loop makes one")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help=f"of B, tried (default: {SHARES})")
    add_choose(parser)
    add_cache(parser)
    options = parser.parse_args(arguments)
    configure_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    best, history = choose(load_captioner(options.a), load_captioner(options.b), read(*options.data), options.cache,
                           options.shares, dict(options.choose))  # fmt: skip
    recipe = {"name": "interpolate", "shares": options.shares, "choose": dict(options.choose)}
    save_captioner(best, options.run / "best", {"validation": history, "recipe": recipe})
    write_json(options.run / "history.json", history)
    write_json(options.run / "recipe.json", recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main())
