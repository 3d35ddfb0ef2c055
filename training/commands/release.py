"""Make a trained checkpoint a released one: `python -m training.commands.release RUN... --to FOLDER`."""

from __future__ import annotations

import argparse
import logging
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from training.commands.arguments import add_cache, add_choose, add_data
from training.commands.ending import mendable
from training.data import DataError
from training.finishing.release import release
from training.process import configure_process
from training.scoring.metrics import MetricError


@mendable(MetricError, OSError, tomllib.TOMLDecodeError)
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.commands.release", description="Release a trained checkpoint."
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders of the runs that led to it, or of a release; the last one's best"
    )
    add_data(parser)
    parser.add_argument("--to", type=Path, required=True, help="folder of the released checkpoint")
    parser.add_argument("--notes", type=Path, required=True, help="TOML with the words of the card")
    add_choose(parser)
    add_cache(parser)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    options = parser.parse_args(arguments)
    configure_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    notes = tomllib.loads(options.notes.read_text(encoding="utf-8"))
    missing = {"intended", "data", "terms", "limits", "failures"} - set(notes)
    if missing:
        raise DataError(f"{options.notes} lacks {', '.join(sorted(missing))}")
    release(options.runs, options.data, options.to, notes, options.name, options.version,
            dict(options.choose), options.cache)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
