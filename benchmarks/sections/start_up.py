"""From process start to the first caption, memory over many requests, and what other services' protocols add to it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks import ROOT
from benchmarks.load import Server, load, serving
from benchmarks.subject import Subject
from benchmarks.timing import PROGRESS

WAYS: dict[str, dict[str, str]] = {"protocols": {}, "none": {"CAPTION_COMPAT": "none"}}  # all, and none of app.compat
# What a process takes that has imported what the service does, and compiled a graph of one product.
FLOOR = """
import app.main, numpy as np, openvino as ov, openvino.opset13 as op, psutil
given = op.parameter([1, 8], np.float32)
graph = ov.Model([op.matmul(given, op.constant(np.ones((8, 8), np.float32)), False, False)], [given])
ov.Core().compile_model(graph, "CPU").create_infer_request().infer([np.ones((1, 8), np.float32)])
print(psutil.Process().memory_info().rss / 1e6)
"""


@dataclass(frozen=True, slots=True)
class Start:
    """One start, and the first hundred requests, one at a time, by the model's own search."""

    wall_s: float
    cpu_s: float
    rss_mb: float
    pss_mb: float
    rss_after_100_mb: float
    pss_after_100_mb: float
    p50_ms: float


def run(subject: Subject) -> dict[str, Any]:
    """From process start to the first caption, memory over many requests, and what the protocols add to it."""
    starts: dict[str, list[Start]] = {way: [] for way in WAYS}
    for _ in range(subject.budget.starts):
        for way, settings in WAYS.items():  # in turns
            starts[way].append(_start(subject, settings))
        print(".", end="", file=PROGRESS, flush=True)
    ours = starts["protocols"]
    floor = float(subprocess.run([sys.executable, "-c", FLOOR], cwd=ROOT, capture_output=True, check=True).stdout)
    memory = [{"name": "all packages imported, a graph of one product", "rss_mb": round(floor), "pss_mb": None}]
    for name, when in (("after the first caption", ""), ("after 100 requests, one at a time", "after_100_")):
        rss, pss = (round(statistics.median(getattr(s, f"{of}_{when}mb") for s in ours)) for of in ("rss", "pss"))
        memory.append({"name": name, "rss_mb": rss, "pss_mb": pss})
    with serving(["-m", "app"], subject.files[0]) as server:
        load(server, subject.files, 4, 100, beam=None)
        memory.append(_memory("after 100 requests, 4 at once", server))
        load(server, subject.files, 4, subject.budget.soak, beam=None)
        memory.append(_memory(f"after {subject.budget.soak} more, 4 at once", server))
    print(file=PROGRESS)
    return {
        "starts": subject.budget.starts,
        "cpu_s": _least_and_median([start.cpu_s for start in ours]),
        "wall_s": _least_and_median([start.wall_s for start in ours]),
        "memory": memory,
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
        wall, cpu, rss, pss = time.perf_counter() - before, server.cpu(), server.rss(), server.pss()
        _, seconds = load(server, subject.files, 1, 100, beam=None)
        return Start(wall, cpu, rss, pss, server.rss(), server.pss(), 1000 * statistics.median(seconds))


def _memory(name: str, server: Server) -> dict[str, Any]:
    return {"name": name, "rss_mb": round(server.rss()), "pss_mb": round(server.pss())}


def _least_and_median(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 2), "median": round(statistics.median(values), 2)}
