"""CPU that a request costs the service, by stage: of the event loop, which is one thread, each step of the way."""

from __future__ import annotations

import json
import signal
import statistics
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.load import Server, load, post, serving
from benchmarks.stages import STAGES
from benchmarks.subject import Subject
from benchmarks.timing import PROGRESS, Sample, milliseconds

COMMANDS = {"watched": ["-m", "benchmarks.stages"], "plain": ["-m", "app"]}
REST = "the event loop itself: what is ready, sockets read, timers, tasks"
LANES = "lanes' threads: encoder and search"
OTHERS = "the engine's other threads"
DECODERS = "processes that decode"


def run(subject: Subject) -> dict[str, Any]:
    """At one client and at 16; a service that is not watched takes turns with the one that is."""
    rounds = max(2, subject.budget.rounds // 3)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(command, subject.files[0])) for name, command in COMMANDS.items()}
        for server in servers.values():
            server.signal(signal.SIGSTOP)
        at = {str(clients): _at(servers, subject, clients, rounds) for clients in (1, 16)}
    print(file=PROGRESS)
    return at


def _at(servers: dict[str, Server], subject: Subject, clients: int, rounds: int) -> dict[str, Any]:
    requests = clients * subject.budget.requests
    found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for number in range(rounds + 1):
        for name, server in servers.items():
            server.signal(signal.SIGCONT)
            try:
                post(server.port, subject.files[:1])  # awake
                before = so_far(server) if name == "watched" else {}
                sample, _ = load(server, subject.files, clients, requests)
                after = so_far(server) if name == "watched" else {}
            finally:
                server.signal(signal.SIGSTOP)
            if number:  # the first does not count
                found[name].append(shares(before, after, sample) if before else {"whole": sample.cpu})
        print(".", end="", file=PROGRESS, flush=True)
    names = [*STAGES, REST, LANES, OTHERS, DECODERS, "whole"]
    rows = {name: statistics.median(one[name] for one in found["watched"]) / requests for name in names}
    return {
        "rows": [{"name": name, "cpu_ms": milliseconds(rows[name])} for name in names if name != "whole"],
        "whole_ms": milliseconds(rows["whole"]),
        "plain_ms": milliseconds(statistics.median(one["whole"] for one in found["plain"]) / requests),
        "requests": requests * rounds,
    }


def shares(before: dict[str, Any], after: dict[str, Any], sample: Sample) -> dict[str, float]:
    """Seconds of CPU of each row of the table between two reports of `benchmarks.stages`."""
    spent = {name: after[name] - before[name] for name in ("loop", "lanes", "process")}
    stages = {name: after["stages"].get(name, 0.0) - before["stages"].get(name, 0.0) for name in STAGES}
    return {
        **stages,
        REST: spent["loop"] - sum(stages.values()),
        LANES: spent["lanes"],
        OTHERS: spent["process"] - spent["loop"] - spent["lanes"],
        DECODERS: sample.cpu - spent["process"],
        "whole": sample.cpu,
    }


def so_far(server: Server, patience: float = 10) -> dict[str, Any]:
    """What the watched server says it has used, by `benchmarks.stages`."""
    said = len(_reports(server))
    server.process.send_signal(signal.SIGUSR1)
    end = time.monotonic() + patience
    while len(reports := _reports(server)) == said:
        assert time.monotonic() < end, "the server does not say what it has used"
        time.sleep(0.01)
    return reports[-1]


def _reports(server: Server) -> list[dict[str, Any]]:
    lines = server.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"stages"') and line.endswith("}")]
