"""Measures this project against other ways of doing the same, side by side; see `scripts/bench --help`.

Contenders take turns, see `benchmarks.timing`. Pictures are drawn from a seed unless --pictures names some.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT, report
from benchmarks.load import BEAM
from benchmarks.machine import machine
from benchmarks.sections import clients, costs, engines, event_loop, instructions, large_jpeg, parts, servers, start_up
from benchmarks.subject import FULL, QUICK, Subject
from benchmarks.timing import PROGRESS

SECTIONS: Mapping[str, Callable[[Subject], Any]] = {
    "engines": engines.run,
    "instructions": instructions.run,
    "servers": servers.run,
    "parts": parts.run,
    "event_loop": event_loop.run,
    "costs": costs.run,
    "clients": clients.run,
    "large_jpeg": large_jpeg.run,
    "start_up": start_up.run,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rounds: to see that it works, not to quote")
    parser.add_argument("--pictures", type=Path, help="a folder or tar of pictures, in place of drawn ones")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS), help="measure just these"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="write docs/benchmarks.json, .md and the plot; what earlier runs measured here of the same stays",
    )
    options = parser.parse_args(arguments)

    subject = Subject(QUICK if options.quick else FULL, options.pictures)
    about = {
        "machine": machine(),
        "model": f"{subject.engine.config.name} {subject.engine.config.version}",
        "pictures": "given by --pictures" if options.pictures else "drawn, 640 x 480",
        "tokens": subject.tokens,
        "beam": BEAM,
    }
    # What was measured on other processors stays, and of this one what another run measured of the same thing.
    records = json.loads(report.BENCHMARKS.read_text()) if report.BENCHMARKS.exists() else []
    earlier: dict[str, Any] = next(
        (record for record in records if report.processor(record) == report.processor(about)), {}
    )
    others = [record for record in records if record is not earlier]
    results: dict[str, Any] = {**earlier, **about} if about.items() <= earlier.items() else about
    for section in options.only:
        print(section, end=" ", file=PROGRESS, flush=True)
        begun = time.monotonic()
        if section == "servers":
            results["one_client"], results["sixteen_clients"], results["overhead"] = servers.run(subject)
        else:
            results[section] = SECTIONS[section](subject)
        print(f"{section} took {time.monotonic() - begun:.0f} s", file=PROGRESS, flush=True)
    if options.write:
        report.BENCHMARKS.write_text(json.dumps([results, *others], indent=1) + "\n")
    print(report.markdown([results]))
    if options.write:
        report.plot(results)
        subprocess.run([sys.executable, ROOT / "scripts" / "docs.py"], check=True)


if __name__ == "__main__":
    main()
