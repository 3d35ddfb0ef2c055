"""caption-bulk on many pictures: its rate beside `caption` on a folder, and its memory at the beginning and the end.

python scripts/bench_bulk.py [--pictures N] [--few N] [--json FILE]. The pictures are links to our own sample under N
names. `caption` gets --few of them, as its rate does not depend on how many there are.
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
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "app" / "static" / "sample.jpg"


class Memory:
    """Megabytes that a process and all below it hold, shared pages counted once, every two seconds."""

    def __init__(self, process: psutil.Process) -> None:
        self.process, self.samples, self._end = process, list[tuple[float, float]](), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(2):
            total = 0
            for one in [self.process, *self.process.children(recursive=True)]:
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue
            self.samples.append((time.monotonic(), total / 1e6))

    def close(self) -> None:
        """Watch no longer."""
        self._end.set()
        self._thread.join()


def folder(of: Path, count: int) -> Path:
    """`count` pictures, 1,000 a folder."""
    for i in range(count):
        place = of / f"{i // 1000:04d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:07d}.jpg").symlink_to(SAMPLE)
    return of


def bulk(pictures: Path, count: int, out: Path, workers: int) -> dict[str, Any]:
    """A run of caption-bulk: pictures a second once its workers are there, and its memory."""
    command = [sys.executable, "-m", "app.bulk", str(pictures), "-o", str(out), "--workers", str(workers)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    memory = Memory(psutil.Process(process.pid))
    started = time.monotonic()
    first = None
    while process.poll() is None:
        if first is None and any(out.glob("part-*.parquet")):
            first = time.monotonic()
        time.sleep(0.1)
    ended = time.monotonic()
    memory.close()
    assert process.stdout is not None
    said = process.stdout.read().decode()
    if process.returncode:
        raise RuntimeError(said[-2000:])
    parts = len(list(out.glob("part-*.parquet")))
    assert first is not None
    at_work = [mb for at, mb in memory.samples if at > first]
    third = max(len(at_work) // 3, 1)
    return {
        "pictures": count,
        "rate": round(count * (parts - workers) / max(parts, 1) / (ended - first), 1) if parts > workers else None,
        "rate_with_start": round(count / (ended - started), 1),
        "first_third_mb": round(statistics.median(at_work[:third])) if at_work else None,
        "last_third_mb": round(statistics.median(at_work[-third:])) if at_work else None,
        "most_mb": round(max((mb for _, mb in memory.samples), default=0)),
    }


def plain(pictures: Path, count: int) -> dict[str, Any]:
    """A run of `caption --csv` on a folder."""
    command = [sys.executable, "-m", "caption_client", str(pictures), "--csv"]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return {"pictures": count, "rate_with_start": round(count / (time.monotonic() - began), 1)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--few", type=int, default=3_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as name:
        place = Path(name)
        few, many = folder(place / "few", options.few), folder(place / "many", options.pictures)
        made: dict[str, Any] = {
            "caption": plain(few, options.few),
            "caption-bulk": bulk(many, options.pictures, place / "out", options.workers),
            "caption again": plain(few, options.few),
        }
    rate = made["caption-bulk"]["rate"] or made["caption-bulk"]["rate_with_start"]
    made["core_hours_a_million"] = round(options.workers * 1e6 / rate / 3600, 2)
    print(json.dumps(made, indent=1))
    if options.json:
        options.json.write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
