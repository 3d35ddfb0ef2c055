"""Train a decoder on sentences: `python -m training.commands.pretrain --recipe R --data SET... --text FILE...`.

Training goes on from the checkpoint with pictures: `scripts/train --init RUN/best`. With `--init` of a checkpoint that
has tags and `model.decoder.tag_slots` in the recipe, the decoder learns how tags become a sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training import distributed
from training.commands.arguments import add_data, join
from training.commands.ending import resumable
from training.config import find_recipe
from training.data import read
from training.data.sentences import read_sentences
from training.initialisation import inherited
from training.pretraining import pretrain
from training.process import configure_process


@resumable
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.commands.pretrain", description="Train a decoder on sentences without pictures."
    )
    parser.add_argument("--recipe", required=True, help="a TOML file, or the name of one in training/recipes")
    add_data(parser)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="JSON lines with captions (.jsonl, .gz)")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; resumes what lies there")
    parser.add_argument("--init", type=Path, help="checkpoint folder to start from")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    configure_process()
    device = join(options.device)
    data = read(*options.data)
    recipe = find_recipe(options.recipe, inherited(options.init) if options.init else None)
    pretrain(recipe, data, read_sentences(options.text, data), options.run, device, options.init)
    distributed.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
