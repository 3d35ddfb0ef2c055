"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.config import set_weight


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
