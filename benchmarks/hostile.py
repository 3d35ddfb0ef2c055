"""`python -m benchmarks.hostile`: what pictures that are made to be costly cost a live server.

Two tables: what one such file costs the process that serves, besides those that decode; and what must be bounded: that,
what others wait meanwhile, and how long the server takes to end. Exit status 1 where a bound does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.pictures.guard import cpu_seconds
from benchmarks.load import Server, serving
from benchmarks.pictures import drawn, hostile, jpeg
from benchmarks.report import number, table
from benchmarks.soak import Tally, beside
from benchmarks.timing import percentile

COMMAND = ("-m", "app", "--host", "127.0.0.1", "--device", "cpu")
SIZE = 19_000_000  # bytes of a hostile file
AT_ONCE = 16
GRACE = 2  # seconds that the server gets to end
PICTURES, CAPTIONS = 16, 5  # of the request whose reasons are written while others are answered


@dataclass(frozen=True, slots=True)
class Bounded:
    """What was measured, and the most that it may be."""

    what: str
    value: float
    most: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What one file cost the process that serves, without those that decode."""

    kind: str
    bytes: int
    status: int
    seconds: float
    cpu_ms: float
    memory_mb: float


def memory_mb(pid: int, what: str) -> float:
    """Megabytes of a process by /proc: `VmRSS`, what it holds, or `VmHWM`, the most since `forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)[0]) * 1024 / 1e6


def forget_peak(pid: int) -> None:
    """Let `VmHWM` begin at what the process holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def costs(server: Server, rounds: int) -> list[Cost]:
    """Each kind, the worst of `rounds`; first what a file as large costs that is none, and is only received."""
    files = {"no picture, as large": bytes(SIZE), **hostile(SIZE)}
    found = []
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as http:
        for kind, data in files.items():
            tries = [_cost(http, server.process.pid, kind, data) for _ in range(rounds)]
            cpu, memory = max(one.cpu_ms for one in tries), max(one.memory_mb for one in tries)
            seconds = max(one.seconds for one in tries)
            found.append(Cost(kind, len(data), tries[-1].status, seconds, cpu, memory))
    return found


def _cost(http: httpx.Client, pid: int, kind: str, data: bytes) -> Cost:
    forget_peak(pid)
    memory, cpu, start = memory_mb(pid, "VmRSS"), cpu_seconds(pid), time.perf_counter()
    status = http.post("/caption", content=data, headers={"content-type": "image/*"}).status_code
    seconds = time.perf_counter() - start
    used = 1000 * (cpu_seconds(pid) - cpu)
    return Cost(kind, len(data), status, seconds, used, memory_mb(pid, "VmHWM") - memory)


def pings(port: int, until: threading.Event) -> list[float]:
    """Seconds that each of many small requests took, one after the other: no less than a turn of the event loop."""
    seconds = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        while not until.is_set():
            start = time.perf_counter()
            http.get("/health/live")
            seconds.append(time.perf_counter() - start)
            time.sleep(0.001)
    return seconds


def turns(port: int, rounds: int) -> list[float]:
    """The longest ping of each round, milliseconds, while a request for many captions and their reasons is answered."""
    files = [("images", jpeg(image)) for image in drawn(PICTURES, 640, 480)]
    query: dict[str, int | str] = {"explain": "true", "num_captions": CAPTIONS, "beam_size": CAPTIONS}
    longest = []
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        for _ in range(rounds):
            over = threading.Event()
            pinging = pool.submit(pings, port, over)
            answer = http.post("/captions", params=query, files=files)
            over.set()
            assert answer.status_code == 200, answer.text[:200]
            longest.append(1000 * max(pinging.result()))
    return longest


def ending(server: Server, files: Sequence[bytes]) -> tuple[float, int]:
    """Seconds from SIGTERM to the end of a server that is at all of `files`, and its exit status."""

    def ask(data: bytes) -> None:
        with suppress(httpx.TransportError):  # it may be cut off
            url = f"http://127.0.0.1:{server.port}/caption"
            httpx.post(url, content=data, headers={"content-type": "image/*"}, timeout=120)

    with ThreadPoolExecutor(len(files)) as pool:
        for data in files:
            pool.submit(ask, data)
        time.sleep(1)
        start = time.perf_counter()
        server.process.terminate()
        status = server.process.wait(120)
        return time.perf_counter() - start, status


def bounded(found: Sequence[Cost], waits: Sequence[float], seconds: float, longest: Sequence[float]) -> list[Bounded]:
    """What was measured beside what must hold."""
    return [
        Bounded("CPU of the process that serves, for one file, ms", max(c.cpu_ms for c in found), 100),
        Bounded("memory of the process that serves, for one file, MB", max(c.memory_mb for c in found), 100),
        Bounded(f"an ordinary JPEG beside {AT_ONCE} hostile files, s, 99th percentile", percentile(waits, 99), 2),
        Bounded(f"the end while {AT_ONCE} are decoded, s after SIGTERM, of which {GRACE} of grace", seconds, GRACE + 1),
        Bounded(
            f"another's request beside one for {PICTURES} x {CAPTIONS} explained captions, ms, the longest",
            statistics.median(longest),
            50,
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each file, and of requests for explained captions")
    parser.add_argument("--pictures", type=int, default=300, help="ordinary ones that are timed beside hostile ones")
    options = parser.parse_args(arguments)
    good, tally = jpeg(next(drawn(1, 640, 480))), Tally()
    files = [*hostile(SIZE).values()]

    with serving(COMMAND, good, CAPTION_GRACE=GRACE, CAPTION_DRAIN_DELAY=0) as server:
        found = costs(server, options.rounds)
        longest = turns(server.port, options.rounds)
        asyncio.run(beside(f"http://127.0.0.1:{server.port}", tally, options.pictures, AT_ONCE))
        seconds, status = ending(server, files * (AT_ONCE // len(files)))

    rows = [[c.kind, f"{c.bytes:,}", c.status, number(c.seconds), number(c.cpu_ms), number(c.memory_mb)] for c in found]
    print(table(["one file", "bytes", "answer", "seconds", "CPU of the server, ms", "memory of the server, MB"], rows))
    lines = bounded(found, tally.beside, seconds, longest)
    print()
    print(table(["", "measured", "bound"], [[line.what, number(line.value), number(line.most)] for line in lines]))
    wrong = [*tally.wrong, *(f"{line.what}: {line.value:.3g}" for line in lines if line.value > line.most)]
    if status:
        wrong.append(f"the server ended with status {status}")
    print(*(f"WRONG: {line}" for line in wrong), sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
