"""Runs of contenders in turns.

Contenders take turns within every round, so that whatever else slows the machine slows all of them;
a ratio is the median over rounds of theirs to ours in the same round. CPU time is that of all threads
and processes of a contender.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROGRESS = sys.stderr
OURS = "ours"
PAUSE = 0.2  # seconds before each turn: the threads of torch's OpenMP spin on for a while, beside whoever comes next


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one run, by the clock and of CPU."""

    wall: float
    cpu: float


def timed(run: Callable[[], object], cpu: Callable[[], float] = time.process_time) -> Sample:
    """One run of `run`."""
    cpu_before, before = cpu(), time.perf_counter()
    run()
    wall = time.perf_counter() - before
    return Sample(wall, cpu() - cpu_before)


def interleaved(
    contenders: Mapping[str, Callable[[], Sample]], rounds: int, only: Mapping[str, int] | None = None
) -> dict[str, list[Sample | None]]:
    """`rounds` rounds in which each contender runs once, after one round that does not count.

    only: for the slow ones, the number of rounds they take part in (None stands for the others).
    """
    samples: dict[str, list[Sample | None]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:  # nobody always runs after the same neighbour
            taking_part = number <= (only or {}).get(name, rounds)
            if taking_part:
                time.sleep(PAUSE)
            sample = contenders[name]() if taking_part else None
            if number:
                samples[name].append(sample)
        print(".", end="", file=PROGRESS, flush=True)
    print(file=PROGRESS)
    return samples


def rows(
    samples: Mapping[str, Sequence[Sample | None]], labels: Mapping[str, str], per: int = 1
) -> list[dict[str, Any]]:
    """One row a contender: milliseconds by the clock and of CPU, and how many times ours that is."""
    ours = samples[OURS]
    table = []
    for name, mine in samples.items():
        done = [sample for sample in mine if sample]
        pairs = [(m, o) for m, o in zip(mine, ours, strict=True) if m and o]
        table.append(
            {
                "name": labels[name],
                "rounds": len(done),
                "min_ms": milliseconds(min(s.wall for s in done) / per),
                "median_ms": milliseconds(statistics.median(s.wall for s in done) / per),
                "cpu_ms": milliseconds(statistics.median(s.cpu for s in done) / per),
                "ratio": round(statistics.median(m.wall / o.wall for m, o in pairs), 2),
                "cpu_ratio": round(statistics.median(m.cpu / o.cpu for m, o in pairs if o.cpu), 2),
            }
        )
    return table


def summary(samples: Sequence[Sample], per: int = 1) -> dict[str, float]:
    """Minimum, median and CPU milliseconds of one thing."""
    return {
        "min_ms": milliseconds(min(s.wall for s in samples) / per),
        "median_ms": milliseconds(statistics.median(s.wall for s in samples) / per),
        "cpu_ms": milliseconds(statistics.median(s.cpu for s in samples) / per),
    }


def milliseconds(seconds: float) -> float:
    return float(f"{1000 * seconds:.4g}")


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that so many of a hundred are not above."""
    return sorted(values)[max(-(-len(values) * percent // 100) - 1, 0)]
