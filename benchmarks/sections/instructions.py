"""Captions with the processor's newer instructions left out, as on the machines of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ROOT
from benchmarks.load import BEAM
from benchmarks.machine import cpu_flags
from benchmarks.sections.parts import floors
from benchmarks.subject import FULL, Subject
from benchmarks.timing import OURS, Sample, interleaved, milliseconds, rows, timed
from model.runtime.engine import Precision

LIMIT = "ONEDNN_MAX_CPU_ISA"  # read once by a process; OpenVINO's own kernels keep to it too
EXACT: Precision = "f32"
PRECISIONS: tuple[Precision, ...] = ("auto", EXACT)
MANY = 16


class InstructionSet(NamedTuple):
    """What processors of some kind have."""

    name: str
    limit: str  # a value of `LIMIT`
    flag: str  # of Linux's description of a processor that has it


SETS = {
    OURS: InstructionSet("all that it has", "", ""),
    "vnni": InstructionSet("AVX-512 VNNI, no bf16", "AVX512_CORE_VNNI", "avx512_vnni"),
    "avx512": InstructionSet("AVX-512, no 8-bit sums", "AVX512_CORE", "avx512bw"),
    "avx2_vnni": InstructionSet("AVX2 VNNI", "AVX2_VNNI", "avx_vnni"),
    "avx2": InstructionSet("AVX2", "AVX2", "avx2"),
}


def run(subject: Subject) -> dict[str, Any]:
    """Contenders are processes of this module, since the limit is read once."""
    with started(subject.source, available(cpu_flags())) as processes:
        rounds = max(3, subject.budget.rounds // 2)
        beams = dict.fromkeys((BEAM, subject.engine.config.search.beam_size))
        tables = {f"One picture, beam {beam}": _table(processes, str(beam), rounds) for beam in beams}
        many = _table(processes, "many", max(3, rounds // 2))
        for row in many:
            row["per_s"] = round(1000 / row["median_ms"], 1)
        tables[f"{MANY} pictures at once, beam {BEAM}, the time a picture"] = many
        for row, (_, precision), process in zip(
            tables[f"One picture, beam {BEAM}"], processes, processes.values(), strict=True
        ):
            if precision == "auto":
                row["floor_ms"] = milliseconds(process.floor())
    return tables


def available(flags: set[str]) -> list[str]:
    """Those of `SETS` that a processor with these flags can be limited to."""
    return [name for name, one in SETS.items() if not one.flag or one.flag in flags]


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

    def turn(self, what: str) -> Sample:
        """The time of a picture: of a few one at a time with the beam `what`, or of many at once."""
        wall, cpu = map(float, self._asked(what).split())
        return Sample(wall, cpu)

    def floor(self) -> float:
        """Seconds that a caption must take, by `benchmarks.sections.parts`: encoder and search."""
        return float(self._asked("floor"))

    def close(self) -> None:
        """End it."""
        self.process.communicate()

    def _asked(self, what: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@contextmanager
def started(source: Path | None, sets: Sequence[str]) -> Iterator[dict[tuple[str, Precision], Process]]:
    """Within it the processes run, for each set one that chooses its numbers and one in float32."""
    with ExitStack() as stack:
        processes: dict[tuple[str, Precision], Process] = {}
        for name in sets:
            for precision in PRECISIONS:
                processes[name, precision] = process = Process(SETS[name].limit, precision, source)
                stack.callback(process.close)
        yield processes


def _label(processes: dict[tuple[str, Precision], Process], key: tuple[str, Precision]) -> str:
    name, precision = key
    return SETS[name].name + (": all in float32" if precision == EXACT else f" ({processes[key].precision})")


def _table(processes: dict[tuple[str, Precision], Process], what: str, rounds: int) -> list[dict[str, Any]]:
    """Of each set also how many times its own time float32 takes, in the same rounds."""
    names = {key: OURS if key == (OURS, "auto") else " ".join(key) for key in processes}
    turns: dict[str, Callable[[], Sample]] = {
        names[key]: partial(process.turn, what) for key, process in processes.items()
    }
    samples = interleaved(turns, rounds)
    table = rows(samples, {names[key]: _label(processes, key) for key in processes})
    for row, (name, precision) in zip(table, processes, strict=True):
        if precision == "auto":
            both = {OURS: samples[names[name, "auto"]], EXACT: samples[names[name, EXACT]]}
            row["exact_ratio"] = rows(both, {OURS: OURS, EXACT: EXACT})[1]["ratio"]
    return table


def main(precision: Precision, source: Path | None) -> None:
    """Say what the encoder computes with, then do what each line that comes asks for and say how long it took."""
    subject = Subject(FULL, source, precision)
    pixels = subject.pixels[[i % len(subject.pixels) for i in range(MANY)]]

    def many() -> Sample:
        subject.caption(pixels)  # awake
        sample = timed(lambda: subject.caption(pixels))
        return Sample(sample.wall / MANY, sample.cpu / MANY)

    turns: dict[str, Callable[[], Sample]] = {"many": many}
    print(subject.engine.precision, flush=True)
    for line in sys.stdin:
        what = line.strip()
        if what == "floor":
            floor = floors(subject)
            print(floor["encode"] + floor["steps"], flush=True)
            continue
        if what not in turns:
            turns[what] = subject.each(partial(subject.engine.caption, search_config=subject.with_beam(int(what))))
        sample = turns[what]()
        print(sample.wall, sample.cpu, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)  # type: ignore[arg-type]
