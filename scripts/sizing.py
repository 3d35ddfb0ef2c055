"""How many cores, replicas and bytes so many captions a second need, from what docs/benchmarks.json measured.

python scripts/sizing.py [--rates N ...] [--core-hour PRICE] prints the table of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.memory import needed_mb  # noqa: E402
from app.settings import Settings  # noqa: E402

BENCHMARKS = ROOT / "docs" / "benchmarks.json"
RATES = (10, 1_000, 100_000)  # captions a second
BUSY = 0.7  # share of a core's time that is planned with: above it, queues grow
CORES = 2  # of a replica
PICTURE_KB = 200  # of an upload: a photograph made smaller for the web


def measured(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of docs/benchmarks.json the record of the last processor that was measured under full load."""
    return next(record for record in records if {"clients", "start_up"} <= record.keys())


def per_core(results: Mapping[str, Any]) -> float:
    """Captions a second that one core gives when the service is full, over HTTP."""
    best: float = max(row["captions_per_s"] for row in results["clients"])
    return best / float(results["machine"]["cores"])


def table(results: Mapping[str, Any], rates: Sequence[int] = RATES, core_hour: float | None = None) -> str:
    """A row for each rate."""
    each = per_core(results)
    memory = needed_mb(Settings(), CORES)
    header = ["captions a second", "cores", f"replicas of {CORES} cores", "memory, GB", "uploads, Gbit/s",
              "core hours a million captions"]  # fmt: skip
    if core_hour is not None:
        header.append(f"a million captions, at {core_hour:g} a core hour")
    rows = []
    for rate in rates:
        replicas = max(math.ceil(rate / (each * BUSY) / CORES), 1)
        hours = 1e6 / (each * BUSY) / 3600
        row = [f"{rate:,}", f"{replicas * CORES:,}", f"{replicas:,}", f"{replicas * memory / 1024:,.0f}",
               f"{rate * PICTURE_KB * 8e3 / 1e9:.3g}", f"{hours:.3g}"]  # fmt: skip
        rows.append(row if core_hour is None else [*row, f"{hours * core_hour:.3g}"])
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def block(results: Mapping[str, Any]) -> str:
    """The table of docs/scaling.md, and what it is computed from."""
    machine = results["machine"]
    return (
        f"{table(results)}\n\nFrom {per_core(results):.0f} captions a second and core ({machine['cpu']}, "
        f"[benchmarks.md](benchmarks.md), over HTTP with many clients), of which {BUSY:.0%} are planned with; uploads "
        f"of {PICTURE_KB} KB; memory as the limit that a replica's settings need. Printed by `scripts/sizing.py`."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", nargs="+", type=int, default=RATES)
    parser.add_argument("--core-hour", type=float, help="what a core costs you for an hour")
    options = parser.parse_args()
    print(table(measured(json.loads(BENCHMARKS.read_text())), options.rates, options.core_hour))


if __name__ == "__main__":
    main()
