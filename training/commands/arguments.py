"""Arguments that several commands have, and what --device is to a process."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from training import distributed
from training.config import set_weight
from training.process import device_of


def add_data(parser: argparse.ArgumentParser) -> None:
    """--data, as `training.data.read` takes it."""
    parser.add_argument("--data", required=True, nargs="+", help="caption sets, the first decides; PATH[:val=N,seed=S]")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """--cache, as `training.features.cached` takes it."""
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where features are kept (default: cache)")


def add_choose(parser: argparse.ArgumentParser) -> None:
    """--choose: pairs of a set and its weight, as a recipe's table `choose` has them."""
    parser.add_argument(
        "--choose",
        type=set_weight,
        nargs="+",
        default=[],
        help="SET=WEIGHT: the sets that decide (default: the first)",
    )


def join(device: str) -> torch.device:
    """This process's device of `--device`, with the other processes joined; only the main one logs."""
    joined = distributed.join(device_of(device))
    level = logging.INFO if distributed.is_main() else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    return joined
