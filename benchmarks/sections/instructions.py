"""A caption on one picture with the processor's newer instructions left out, as on the machines of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.subject import FULL, Subject
from benchmarks.timing import OURS, Sample, interleaved, rows
from model.runtime.engine import Precision

LIMIT = "ONEDNN_MAX_CPU_ISA"
# What a processor is limited to, and the numbers that the encoder is to compute with.
LIMITS: dict[str, tuple[str, Precision]] = {
    OURS: ("", "auto"),
    "exact": ("", "f32"),
    "avx512": ("AVX512_CORE", "auto"),
    "avx2": ("AVX2", "auto"),
}


def run(subject: Subject) -> list[dict[str, Any]]:
    """Contenders are processes of this module, since the limit is read once."""
    with started(subject.source) as processes:
        contenders = {name: process.turn for name, process in processes.items()}
        labels = {
            OURS: f"all that it has ({processes[OURS].precision})",
            "exact": "the same, all in float32",
            "avx512": f"AVX-512 without 8-bit sums ({processes['avx512'].precision})",
            "avx2": f"AVX2 ({processes['avx2'].precision})",
        }
        return rows(interleaved(contenders, subject.budget.rounds), labels)


class Process:
    """An engine of its own, that captions when it is asked to."""

    def __init__(self, limit: str, precision: Precision, source: Path | None) -> None:
        environment = {**os.environ, **({LIMIT: limit} if limit else {})}
        command = [sys.executable, "-m", "benchmarks.sections.instructions", precision]
        command += [str(source)] if source else []
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.precision = self._line()

    def turn(self) -> Sample:
        """A few pictures, one at a time."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, cpu = map(float, self._line().split())
        return Sample(wall, cpu)

    def close(self) -> None:
        """End it."""
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@contextmanager
def started(source: Path | None) -> Iterator[dict[str, Process]]:
    """Within it the processes run."""
    with ExitStack() as stack:
        processes = {}
        for name, (limit, precision) in LIMITS.items():
            processes[name] = process = Process(limit, precision, source)
            stack.callback(process.close)
        yield processes


def main(precision: Precision, source: Path | None) -> None:
    """Say what the encoder computes with, then for every line that comes in caption some pictures and say how long."""
    subject = Subject(FULL, source, precision)
    turn = subject.each(subject.caption)
    print(subject.engine.precision, flush=True)
    for _ in sys.stdin:
        sample = turn()
        print(sample.wall, sample.cpu, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)  # type: ignore[arg-type]
