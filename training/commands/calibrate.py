"""Fit the temperature of a checkpoint: `python -m training.commands.calibrate FOLDER --data SET`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.checkpoint import GRAPHS, load_captioner, open_checkpoint, save_captioner
from training.commands.arguments import add_data
from training.commands.ending import mendable
from training.data import DataError, read
from training.evaluation import confidence, teacher_force
from training.finishing.calibrate import fit_temperature
from training.finishing.export import export
from training.finishing.quantise import calibration_pictures
from training.process import configure_process
from training.scoring.metrics import expected_calibration_error

log = logging.getLogger("training.calibrate")


@mendable()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.commands.calibrate", description="Fit a checkpoint's temperature and store it."
    )
    parser.add_argument("folder", type=Path, help="a checkpoint folder")
    add_data(parser)
    parser.add_argument("--split", default="val", help="pictures to fit on (default: val)")
    options = parser.parse_args(arguments)
    configure_process()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    captioner = load_captioner(options.folder)
    data = read(*options.data)
    pictures = data.split(options.split)
    if not pictures:
        raise DataError(f"no {options.split} pictures in the data")
    outputs, targets = teacher_force(captioner, pictures)
    temperature = fit_temperature(captioner, outputs, targets)
    before, after = (
        expected_calibration_error(*confidence(captioner, outputs, targets, t))
        for t in (captioner.config.temperature, temperature)
    )
    metrics = dict(open_checkpoint(options.folder).metrics)
    captioner.config = replace(captioner.config, temperature=temperature)
    save_captioner(captioner, options.folder, metrics)
    if (options.folder / GRAPHS).is_dir():  # the temperature is part of the graphs
        export(options.folder, calibration_pictures(data.split("train"), captioner.config.preprocess))
    log.info("temperature %.3f: calibration error %.4f, was %.4f", temperature, after, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
