"""From process start to the first caption, memory over many requests, and what other services' protocols add to it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.load import load, serving
from benchmarks.subject import Subject
from benchmarks.timing import PROGRESS

WAYS: dict[str, dict[str, str]] = {"protocols": {}, "none": {"CAPTION_COMPAT": "none"}}  # all, and none of app.compat


@dataclass(frozen=True, slots=True)
class Start:
    """One start, and the first hundred requests, one at a time."""

    wall_s: float
    cpu_s: float
    rss_mb: float
    rss_after_100_mb: float
    p50_ms: float


def run(subject: Subject) -> dict[str, Any]:
    """From process start to the first caption, memory over many requests, and what the protocols add to it."""
    starts: dict[str, list[Start]] = {way: [] for way in WAYS}
    for _ in range(subject.budget.starts):
        for way, settings in WAYS.items():  # in turns
            starts[way].append(_start(subject, settings))
        print(".", end="", file=PROGRESS, flush=True)
    with serving(["-m", "app"], subject.files[0]) as server:
        load(server, subject.files, 4, 100)
        early = server.rss()
        load(server, subject.files, 4, subject.budget.soak)
        late = server.rss()
    print(file=PROGRESS)
    ours = starts["protocols"]
    return {
        "starts": subject.budget.starts,
        "cpu_s": _least_and_median([start.cpu_s for start in ours]),
        "wall_s": _least_and_median([start.wall_s for start in ours]),
        "rss_mb": round(statistics.median(start.rss_mb for start in ours)),
        "rss_after_100_mb": round(early),
        "requests": subject.budget.soak,
        "rss_after_all_mb": round(late),
        "protocols": {
            name: round(
                statistics.median(
                    getattr(with_them, name) / getattr(without, name)
                    for with_them, without in zip(ours, starts["none"], strict=True)
                ),
                3,
            )
            for name in ("cpu_s", "rss_mb", "rss_after_100_mb", "p50_ms")
        },
    }


def _start(subject: Subject, settings: dict[str, str]) -> Start:
    before = time.perf_counter()
    with serving(["-m", "app"], subject.files[0], **settings) as server:
        wall, cpu, rss = time.perf_counter() - before, server.cpu(), server.rss()
        _, seconds = load(server, subject.files, 1, 100)
        return Start(wall, cpu, rss, server.rss(), 1000 * statistics.median(seconds))


def _least_and_median(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 2), "median": round(statistics.median(values), 2)}
