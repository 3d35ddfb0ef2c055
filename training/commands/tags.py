"""Give a checkpoint a head for tags: `python -m training.commands.tags FOLDER --data SET... --run RUN`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint import load_captioner, save_captioner, write_json
from training.augment import AugmentConfig
from training.commands.arguments import add_cache, add_data
from training.commands.ending import mendable
from training.data import read
from training.finishing.tags import give_tags
from training.process import configure_process, device_of
from training.scoring.objects import WORDS

log = logging.getLogger("training.tags")


@mendable()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.commands.tags", description="Give a checkpoint tags.")
    parser.add_argument("folder", type=Path, help="a checkpoint folder")
    add_data(parser)
    parser.add_argument("--run", type=Path, required=True, help="folder for the result, as training.loop makes one")
    parser.add_argument("--most", type=int, default=1000, help="tags at most (default: 1000)")
    parser.add_argument("--least", type=int, default=12, help="pictures that a tag is said of at least (default: 12)")
    parser.add_argument("--objects", type=Path, default=WORDS, help="words that name things, a kind of thing a line")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--views", type=int, default=2, help="views a picture; all but the first augmented")
    add_cache(parser)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    options = parser.parse_args(arguments)
    configure_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    captioner = load_captioner(options.folder).to(device_of("auto"))
    data = read(*options.data)
    augmentation = AugmentConfig(flip=True, min_scale=0.7, jitter=0.15)
    found = give_tags(
        captioner, data, options.most, options.least, options.objects, options.epochs, options.views,
        augmentation, options.cache, options.precision,
    )  # fmt: skip
    history = found["history"]
    recipe = {"name": "tags", "tags": len(captioner.config.tags), "epochs": options.epochs, "views": options.views}
    best = max(history, key=lambda row: row["score"])
    metrics = {"validation": best, "calibration_error": found["calibration_error"]}
    save_captioner(captioner, options.run / "best", {**metrics, "recipe": recipe})
    write_json(options.run / "history.json", history)
    write_json(options.run / "recipe.json", recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main())
