"""From process start to the first caption, and memory over many requests."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.load import load, serving
from benchmarks.subject import Subject
from benchmarks.timing import PROGRESS


def run(subject: Subject) -> dict[str, Any]:
    """From process start to the first caption, and memory over many requests."""
    walls, cpus, resident = [], [], []
    for _ in range(subject.budget.starts):
        before = time.perf_counter()
        with serving(["-m", "app"], subject.files[0]) as server:
            walls.append(time.perf_counter() - before)
            cpus.append(server.cpu())
            resident.append(server.rss())
        print(".", end="", file=PROGRESS, flush=True)
    with serving(["-m", "app"], subject.files[0]) as server:
        load(server, subject.files, 4, 100)
        early = server.rss()
        load(server, subject.files, 4, subject.budget.soak)
        late = server.rss()
    print(file=PROGRESS)
    return {
        "starts": subject.budget.starts,
        "cpu_s": {"min": round(min(cpus), 2), "median": round(statistics.median(cpus), 2)},
        "wall_s": {"min": round(min(walls), 2), "median": round(statistics.median(walls), 2)},
        "rss_mb": round(statistics.median(resident)),
        "rss_after_100_mb": round(early),
        "requests": subject.budget.soak,
        "rss_after_all_mb": round(late),
    }
