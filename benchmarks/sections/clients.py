"""Latency and throughput of the service against the number of clients."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.load import load, serving
from benchmarks.subject import Subject
from benchmarks.timing import PROGRESS, milliseconds


def run(subject: Subject) -> list[dict[str, Any]]:
    """Latency and throughput of the service against the number of clients."""
    table = []
    with serving(["-m", "app"], subject.files[0]) as server:
        for clients in (1, 2, 4, 8, 16, 32):
            latencies: list[float] = []
            speeds = []
            for _ in range(max(2, subject.budget.rounds // 6)):
                sample, seconds = load(server, subject.files, clients, clients * subject.budget.requests)
                latencies += seconds
                speeds.append(clients * subject.budget.requests / sample.wall)
            latencies.sort()
            table.append(
                {
                    "clients": clients,
                    "p50_ms": milliseconds(statistics.median(latencies)),
                    "p95_ms": milliseconds(latencies[math.ceil(0.95 * len(latencies)) - 1]),
                    "captions_per_s": round(statistics.median(speeds), 1),
                }
            )
            print(".", end="", file=PROGRESS, flush=True)
    print(file=PROGRESS)
    return table
