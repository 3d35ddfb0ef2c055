"""Compare the recurrent cells: `python -m training.commands.compare_cells --data SET`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training.commands.arguments import add_cache
from training.commands.ending import mendable
from training.config import find_recipe
from training.data import read
from training.process import configure_process
from training.studies.compare_cells import (
    KINDS,
    PICTURES,
    SEEDS,
    TRAINED_SEEDS,
    MemoryTask,
    Norms,
    cells_section,
    pictures_section,
    plot_cells,
    plot_pictures,
    reach_at_start,
    remember,
    train_decoders,
)

log = logging.getLogger("training.compare_cells")


@mendable()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.commands.compare_cells", description="Compare the cells.")
    parser.add_argument("--data", nargs="+", help="caption sets; PATH[:val=N,seed=S]; without: nothing with pictures")
    parser.add_argument("--recipe", default="cells", help="a TOML file, or the name of one in training/recipes")
    parser.add_argument("--runs", type=Path, default=Path("runs/cells"), help="where the runs go")
    add_cache(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where cells.md and its plots go")
    options = parser.parse_args(arguments)
    configure_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    file: Path = options.docs / "cells.md"
    recipe = find_recipe(options.recipe)
    data = read(*options.data) if options.data else None
    sizes = recipe.model.decoder.embed_size, recipe.model.decoder.hidden_size
    start: dict[str, list[Norms]] = {
        kind: [reach_at_start(kind, seed, *sizes) for seed in range(SEEDS)] for kind in KINDS
    }
    task = MemoryTask()
    remembered: dict[str, list[Norms]] = {}
    for kind in KINDS:
        log.info("saying the first word again: %s", kind)
        remembered[kind] = [remember(kind, task, seed) for seed in range(TRAINED_SEEDS)]
    if data:
        trained = train_decoders(recipe, data, options.runs, options.cache, torch.device(options.device))
    plot_cells(start, remembered, options.docs / "images" / "memory.png")
    text = "\n".join(cells_section(start, remembered, sizes, task))
    if data:
        used = data.split("train")
        source = ", ".join(dict.fromkeys(p.source for p in used))
        plot_pictures(trained, options.docs / "images" / "cells.png")
        text += "\n".join(pictures_section(trained, recipe, len(used), source))
    elif file.is_file():
        _, heading, rest = file.read_text(encoding="utf-8").partition(PICTURES)
        text += heading + rest
    file.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
