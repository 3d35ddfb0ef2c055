"""Between two checkpoints: `python -m training.interpolate A B --data SET... --run RUN`.

Weights part of the way from A to B, where B was trained on from A or both were from a third, are often
better than both: they keep what was learnt and lose some of what was learnt by heart (Wortsman et al.
2022, arXiv:2109.01903).
The share is chosen on validation pictures.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.captioner import Captioner
from model.checkpoint import load_captioner, save_captioner, write_json
from model.config import DecoderConfig
from model.errors import CaptionModelError, CheckpointError
from training import engine, features
from training.augment import AugmentConfig
from training.config import TrainConfig, set_weight
from training.data import CaptionData, DataError, read
from training.process import settle
from training.train import extended, score_of

log = logging.getLogger("training.interpolate")

SHARES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)


def between(a: Captioner, b: Captioner, share: float) -> Captioner:
    """A captioner with `share` of b's weights and the rest of a's; both must be of one shape and vocabulary."""
    if b.vocabulary.words[: len(a.vocabulary)] == a.vocabulary.words:
        a = extended(a, b.vocabulary)  # words that were learnt on the way
    if a.vocabulary.words != b.vocabulary.words or _sizes(a) != _sizes(b):
        raise CheckpointError("the two checkpoints differ in vocabulary or sizes; the second must come from the first")
    made = Captioner(b.config, b.vocabulary)
    theirs = b.state_dict()
    made.load_state_dict(
        {
            name: torch.lerp(mine, theirs[name], share) if mine.is_floating_point() else theirs[name]
            for name, mine in a.state_dict().items()
        }
    )
    return made.eval()


def _sizes(captioner: Captioner) -> DecoderConfig:
    return replace(captioner.config.decoder, dropout=0.0)  # which no weight depends on


def choose(
    a: Captioner, b: Captioner, data: CaptionData, cache: Path, shares: Sequence[float], weights: Mapping[str, float]
) -> tuple[Captioner, list[dict[str, Any]]]:
    """The captioner of the share with the best validation CIDEr, and what each share gave.

    weights: of the sets, as a recipe's `choose`; without any the first set decides.
    """
    config = TrainConfig()
    best: Captioner | None = None
    history: list[dict[str, Any]] = []
    for step, share in enumerate(shares, 1):
        captioner = between(a, b, share)
        stages = features.before_head(captioner, len(captioner.encoder.stages))
        val = features.cached(
            captioner, stages, data.split("val"), 1, AugmentConfig(), cache, torch.device("cpu"), config.precision
        )
        result = engine.evaluate(captioner, val, captioner.config.search, config)
        score = score_of(result, val.pictures, weights)
        if best is None or score > max(row["score"] for row in history):
            best = captioner
        history.append({"epoch": step, "share": share, **result.figures(), "score": score})
        log.info("%s", history[-1])
    assert best is not None
    return best, history


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.interpolate", description="Between two checkpoints.")
    parser.add_argument("a", type=Path, help="checkpoint folder that training started from")
    parser.add_argument("b", type=Path, help="checkpoint folder that it led to")
    parser.add_argument("--data", required=True, nargs="+", help="caption sets, the first decides; PATH[:val=N,seed=S]")
    parser.add_argument("--run", type=Path, required=True, help="folder for the result, as training.train makes one")
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
