"""What commands share that train: where they run, and how they end, since the same command goes on from a save."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import ParamSpec

import torch

from model.errors import CaptionModelError
from training import distributed
from training.data import DataError
from training.optimisation import TrainingDiverged
from training.process import device_of

P = ParamSpec("P")


def resumable(main: Callable[P, int]) -> Callable[P, int]:
    """`main`, with exit status 1 and one line for what users can mend, and 130 where they interrupt it."""

    @functools.wraps(main)
    def ending(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except (CaptionModelError, DataError, TrainingDiverged) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last save", file=sys.stderr)
            return 130

    return ending


def join(device: str) -> torch.device:
    """This process's device of `--device`, with the other processes joined; only the main one logs."""
    joined = distributed.join(device_of(device))
    level = logging.INFO if distributed.is_main() else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    return joined
