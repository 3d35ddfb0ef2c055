"""Between two checkpoints: `python -m training.commands.interpolate A B --data SET... --run RUN`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint import load_captioner, save_captioner, write_json
from model.errors import CaptionModelError
from training.config import set_weight
from training.data import DataError, read
from training.finishing.interpolate import SHARES, choose
from training.process import settle


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.commands.interpolate", description="Between two checkpoints."
    )
    parser.add_argument("a", type=Path, help="checkpoint folder that training started from")
    parser.add_argument("b", type=Path, help="checkpoint folder that it led to")
    parser.add_argument("--data", required=True, nargs="+", help="caption sets, the first decides; PATH[:val=N,seed=S]")
    parser.add_argument("--run", type=Path, required=True, help="folder for the result, as training.loop makes one")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help=f"of B, tried (default: {SHARES})")
    parser.add_argument(
        "--choose",
        type=set_weight,
        nargs="+",
        default=[],
        help="SET=WEIGHT: the sets that decide (default: the first)",
    )
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where features are kept (default: cache)")
    options = parser.parse_args(arguments)
    settle()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        best, history = choose(load_captioner(options.a), load_captioner(options.b), read(*options.data), options.cache,
                               options.shares, dict(options.choose))  # fmt: skip
        recipe = {"name": "interpolate", "shares": options.shares, "choose": dict(options.choose)}
        save_captioner(best, options.run / "best", {"validation": history, "recipe": recipe})
    except (CaptionModelError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(options.run / "history.json", history)
    write_json(options.run / "recipe.json", recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main())
