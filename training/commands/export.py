"""Export the serving graphs of a checkpoint: `python -m training.commands.export FOLDER`."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint import GRAPHS, open_checkpoint
from training.commands.ending import mendable
from training.data import read
from training.finishing.export import export
from training.finishing.quantise import calibration_pictures
from training.process import configure_process

log = logging.getLogger("training.export")


@mendable()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.commands.export",
        description="Export the serving graphs; with the training data also that of an encoder in 8 bits.",
    )
    parser.add_argument("folder", type=Path, help="a checkpoint folder")
    parser.add_argument("--data", nargs="+", default=[], help="caption sets that it was trained on")
    parser.add_argument("--to", type=Path, help="copy the checkpoint there first, and export there")
    options = parser.parse_args(arguments)
    configure_process()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder: Path = options.to or options.folder
    config = open_checkpoint(options.folder).config
    train = read(*options.data).split("train") if options.data else ()
    pictures = calibration_pictures(train, config.preprocess)
    if options.to:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.to.parent) as temporary:
            # What stands there now is replaced by a whole checkpoint, or left alone.
            copy = Path(shutil.copytree(options.folder, Path(temporary) / "checkpoint"))
            export(copy, pictures)
            shutil.copytree(copy, options.to, dirs_exist_ok=True)
    else:
        export(folder, pictures)
    log.info("wrote %s", folder / GRAPHS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
