"""Make the ablation table: `python -m training.commands.ablate --data SET [SET ...]`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from model.errors import ConfigError
from training.commands.arguments import add_cache
from training.commands.ending import resumable
from training.data import read
from training.data.sentences import read_sentences
from training.process import configure_process
from training.studies.ablate import ROWS, Bench, read_record, read_table
from training.studies.ablation_page import page, plot

log = logging.getLogger("training.ablate")


@resumable
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.commands.ablate", description="Make the ablation table.")
    parser.add_argument("--data", nargs="+", help="caption sets, the first decides; PATH[:val=N,seed=S]")
    parser.add_argument("--text", type=Path, nargs="+", help="captions without pictures, for rows with `sentences`")
    parser.add_argument("--table", type=Path, default=ROWS, help="TOML with [base] and [rows]; names page and record")
    parser.add_argument("--rows", nargs="+", help="names of rows to run now; the page shows all recorded")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further row after so long")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/ablation"), help="where the runs go, apart for each table"
    )
    add_cache(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where page, record and plot are")
    options = parser.parse_args(arguments)
    if options.rows and not options.data:
        parser.error("rows are run on --data")
    configure_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    began, name = time.monotonic(), options.table.stem
    record = options.docs / f"{name}.json"
    table = read_table(options.table)
    names = [row.name for row in table.rows]
    if unknown := set(options.rows or ()) - set(names):
        raise ConfigError(f"no row {min(unknown)!r}; rows: {', '.join(names)}")
    if options.data:
        data, device = read(*options.data), torch.device(options.device)
        lines = read_sentences(options.text, data) if options.text else []
        bench = Bench(table, data, options.runs, options.cache, device, record, lines)
        bench.run(table.rows[0])  # all others are compared with it
        for row in table.rows:
            late = time.monotonic() - began > 60 * options.minutes
            if (options.rows is None or row.name in options.rows) and not late:
                bench.run(row)
    recorded = read_record(record)
    results = table.known(recorded)
    if "base" not in results:
        raise ConfigError(f"{record} holds no result of the base as it is now; run it with --data")
    if others := [row for row in recorded if row not in results]:
        log.warning("not shown, because they have changed since or are no rows any more: %s", ", ".join(others))
    text = page(table, results, name)
    plot(table, results, options.docs / "images" / f"{name}.png")
    (options.docs / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
