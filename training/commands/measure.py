"""Measure a release again: `python -m training.commands.measure FOLDER --data SET [SET ...]`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from training.commands.arguments import add_choose, add_data
from training.commands.ending import mendable
from training.finishing.release import measure
from training.process import configure_process
from training.scoring.metrics import MetricError


@mendable(MetricError)
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.commands.measure",
        description="Measure a release again, where what reads its pictures has changed; it stays as it is.",
    )
    parser.add_argument("folder", type=Path, help="folder of a release")
    add_data(parser)
    add_choose(parser)
    options = parser.parse_args(arguments)
    configure_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    measure(options.folder, options.data, dict(options.choose))
    return 0


if __name__ == "__main__":
    sys.exit(main())
