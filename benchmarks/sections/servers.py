"""Over HTTP: this service, LitServe and a tutorial's handler."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.load import BEAM, Server, load, post, serving
from benchmarks.subject import Subject
from benchmarks.timing import OURS, Sample, interleaved, rows, timed
from model.runtime.engine import Lane


def run(subject: Subject) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, float]]:
    """At one client (milliseconds a request), and at 16 (of the whole time, a request)."""
    here = "benchmarks.servers"
    commands = {
        OURS: ["-m", "app"],
        "fast": ["-m", "app"],
        **{name: ["-m", here, name, "--beam", str(BEAM)] for name in ("tutorial", "litserve-torch", "litserve-ours")},
    }
    labels = {
        OURS: "this service",
        "fast": "this service, resizing fast (CAPTION_RESIZER=fast)",
        "tutorial": "FastAPI + torch eager, one request at a time",
        "litserve-torch": "LitServe + the same torch model",
        "litserve-ours": "LitServe + this engine",
        "none": "no server: the engine's lanes decode and caption the same files",
    }
    # As many for each of the 16: with fewer, most of a round would be its beginning and its end.
    one, many = subject.budget.requests, 16 * subject.budget.requests
    with ExitStack() as stack:
        servers = {}
        for name, command in commands.items():
            settings = {"CAPTION_RESIZER": "fast"} if name == "fast" else {}
            servers[name] = stack.enter_context(serving(command, subject.files[0], **settings))
            servers[name].signal(signal.SIGSTOP)

        def turn(server: Server, clients: int, requests: int) -> Sample:
            server.signal(signal.SIGCONT)
            try:
                post(server.port, subject.files[:1])  # awake
                return load(server, subject.files, clients, requests)[0]
            finally:
                server.signal(signal.SIGSTOP)

        def at(clients: int, requests: int) -> dict[str, Callable[[], Sample]]:
            return {name: partial(turn, server, clients, requests) for name, server in servers.items()}

        def engine() -> Sample:
            subject.caption(subject.one(0))  # awake
            return timed(lambda: [subject.caption(subject.one(i)) for i in range(one)])

        def from_file() -> Sample:
            subject.caption(subject.one(0))  # awake
            return timed(lambda: [subject.caption(subject.prepare(file)[None]) for file in subject.files[:one]])

        def no_server() -> Sample:
            return timed(partial(_without_server, subject, many))

        single = interleaved(at(1, one), subject.budget.rounds)
        slow = dict.fromkeys(("tutorial", "litserve-torch"), max(2, subject.budget.rounds // 8))
        crowd = interleaved({**at(16, many), "none": no_server}, max(3, subject.budget.rounds // 3), slow)
        # HTTP against the bare engine on the same pictures: in turns as well.
        turns = {OURS: engine, "file": from_file, "http": at(1, one)[OURS]}
        both = interleaved(turns, subject.budget.rounds)
    pixels, file, http = rows(both, {name: name for name in turns}, one)
    whole = rows({OURS: both["file"], "http": both["http"]}, {OURS: "file", "http": "HTTP"}, one)[1]
    # How much faster than LitServe around this engine a server would be that took no time of its own.
    pair = {OURS: crowd["none"], "litserve-ours": crowd["litserve-ours"]}
    most = rows(pair, labels, many)[1]
    return rows(single, labels, one), rows(crowd, labels, many), {
        "engine_ms": pixels["median_ms"], "file_ms": file["median_ms"], "http_ms": http["median_ms"],
        "ratio": http["ratio"], "ratio_to_file": whole["ratio"], "most": most["ratio"],
    }  # fmt: skip


def _without_server(subject: Subject, requests: int) -> None:
    """Decode and caption so many files in the engine's lanes, as many searched for together as gain from it."""
    engine, files = subject.engine, subject.files

    def run(lane: Lane, numbers: range) -> None:
        for start in range(0, len(numbers), engine.searched_at_once):
            some = numbers[start : start + engine.searched_at_once]
            regions = [lane.encode(subject.prepare(files[i % len(files)])[None]) for i in some]
            lane.generate(regions[0].join(regions), subject.search)

    with ThreadPoolExecutor(len(engine.lanes)) as pool:
        shares = (range(start, requests, len(engine.lanes)) for start in range(len(engine.lanes)))
        for done in [pool.submit(run, lane, share) for lane, share in zip(engine.lanes, shares, strict=True)]:
            done.result()
