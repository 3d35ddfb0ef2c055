"""`caption-bulk` in turns with `caption` on one folder; then a long run of it: rate, memory over time, and cost.

python scripts/bench_bulk.py [--few N] [--rounds N] [--pictures N] [--core-hour PRICE] [--json FILE]; --pictures 0 and
--rounds 0 leave a half out. Pictures of 640 x 480 are drawn, --distinct of them, and linked under as many names as are
wanted. Rates are those of the time at work, after the start; `cpu_ms` is what a picture costs all processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import ROOT
from benchmarks.pictures import drawn, jpeg

SHARD = 48  # pictures of a file of answers in the turns, whole batches; a long run has those of `caption-bulk`
TELL = 30.0  # seconds between two lines about a long run


class Look(NamedTuple):
    """A process and all below it at some second of its run: pictures done, CPU seconds used, and megabytes held."""

    at: float
    pictures: int
    cpu: float
    mb: float


class Run:
    """A command at work. done: how many pictures are captioned, given the lines that it has printed."""

    def __init__(self, command: Sequence[str], done: Callable[[int], int], tell: bool = False) -> None:
        self.began, self.looks, self.lines, self.said = time.monotonic(), list[Look](), 0, list[str]()
        self._cpu: dict[int, float] = {}  # by process, also of those that have ended
        environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        told = 0.0
        while self.process.poll() is None:
            look = self._look(done(self.lines))
            if look.pictures and (not self.looks or look.pictures > self.looks[-1].pictures):
                self.looks.append(look)
            if tell and look.at - told >= TELL:
                told = look.at
                print(f"{look.at:6.0f} s  {look.pictures:8,} pictures  {look.mb:6.0f} MB", file=sys.stderr, flush=True)
            time.sleep(0.2)
        reader.join()
        self.seconds = time.monotonic() - self.began
        if self.process.returncode:
            sys.exit("error: " + "".join(self.said)[-2000:])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines += 1
            self.said = [*self.said[-20:], line]

    def _look(self, pictures: int) -> Look:
        memory = 0.0
        root = psutil.Process(self.process.pid)
        for one in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):  # it has just ended
                times = one.cpu_times()
                self._cpu[one.pid] = times.user + times.system
                memory += one.memory_full_info().pss / 1e6  # what several share is counted once
        return Look(time.monotonic() - self.began, pictures, sum(self._cpu.values()), memory)

    def report(self, workers: int = 1, shard: int = 1) -> dict[str, Any]:
        """Of the time from when each worker has done a shard; all but one have then half of the next, on average."""
        at_work = [look for look in self.looks if look.pictures >= workers * shard]
        if len(at_work) < 2:
            sys.exit("error: too few pictures to measure with")
        first, last = at_work[0], at_work[-1]
        done, seconds = last.pictures - first.pictures - (workers - 1) * shard / 2, last.at - first.at
        return {
            "pictures": last.pictures,
            "seconds": round(self.seconds, 1),
            "rate": round(done / seconds, 1),
            "cpu_ms": round(1000 * (last.cpu - first.cpu) / done, 2),
        }


def folder(of: Path, count: int, pictures: Sequence[bytes]) -> Path:
    """`count` names, 1,000 a folder, for the few pictures there are."""
    of.mkdir()
    kept = [of.parent / f"{of.name}-{i}.jpg" for i in range(len(pictures))]
    for path, data in zip(kept, pictures, strict=True):
        path.write_bytes(data)
    for i in range(count):
        place = of / f"{i // 1000:04d}"
        place.mkdir(exist_ok=True)
        os.link(kept[i % len(kept)], place / f"{i:07d}.jpg")
    return of


def bulk(pictures: Path, count: int, out: Path, workers: int, shard: int, tell: bool = False) -> Run:
    """A run of caption-bulk, of which each file of answers is a shard."""

    def done(lines: int) -> int:
        return min(sum(1 for _ in out.glob("part-*.parquet")) * shard, count)

    command = ["app.bulk", str(pictures), "-o", str(out), "--workers", str(workers), "--shard", str(shard)]
    return Run(command, done, tell)


def turns(place: Path, few: Path, count: int, rounds: int, workers: int) -> dict[str, Any]:
    """`caption --csv` and `caption-bulk` on one folder, in turns; the ratio of their rates, round by round."""
    made: dict[str, list[dict[str, Any]]] = {"caption": [], "caption-bulk": []}
    for number in range(rounds):
        command = ["caption_client", str(few), "--csv", "--threads", str(workers)]
        run = Run(command, lambda lines: min(max(lines - 1, 0), count))  # the first has the columns' names
        made["caption"].append(run.report())
        run = bulk(few, count, place / f"out-{number}", workers, SHARD)
        made["caption-bulk"].append(run.report(workers, SHARD))
        print(json.dumps({name: reports[-1] for name, reports in made.items()}), file=sys.stderr, flush=True)
    ratios = {
        key: [b[key] / c[key] for b, c in zip(made["caption-bulk"], made["caption"], strict=True)]
        for key in ("rate", "cpu_ms")
    }
    return {**made, "times_the_rate": _median(ratios["rate"]), "times_the_cpu": _median(ratios["cpu_ms"])}


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def long(run: Run, workers: int, shard: int, core_hour: float | None) -> dict[str, Any]:
    """Rate, memory at the beginning and the end, and what a million pictures cost."""
    report = run.report(workers, shard)
    memory = [look.mb for look in run.looks if look.pictures >= workers * shard]
    third = max(len(memory) // 3, 1)
    hours = workers * 1e6 / report["rate"] / 3600
    made = {
        **report,
        "first_third_mb": round(statistics.median(memory[:third])),
        "last_third_mb": round(statistics.median(memory[-third:])),
        "most_mb": round(max(memory)),
        "core_hours_a_million": round(hours, 2),
    }
    return made if core_hour is None else {**made, "a_million_costs": round(hours * core_hour, 2)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000, help="of the long run")
    parser.add_argument("--few", type=int, default=2_000, help="of the turns")
    parser.add_argument("--rounds", type=int, default=3, help="of the turns")
    parser.add_argument("--distinct", type=int, default=300)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--core-hour", type=float, metavar="PRICE", help="what an hour of a core costs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pictures = [jpeg(image) for image in drawn(options.distinct, 640, 480)]
    made: dict[str, Any] = {
        "workers": options.workers,
        "kb_a_picture": round(sum(map(len, pictures)) / len(pictures) / 1000),
    }
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as name:
        place = Path(name)
        if options.rounds:
            few = folder(place / "few", options.few, pictures)
            made["turns"] = turns(place, few, options.few, options.rounds, options.workers)
        if options.pictures:
            many = folder(place / "many", options.pictures, pictures)
            from app.bulk_plan import SHARD as shard

            run = bulk(many, options.pictures, place / "out", options.workers, shard, tell=True)
            made["long"] = long(run, options.workers, shard, options.core_hour)
    print(json.dumps(made, indent=1))
    if options.json:
        options.json.write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
