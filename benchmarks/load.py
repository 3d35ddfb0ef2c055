"""Servers in processes of their own, and clients that ask them."""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks import ROOT
from benchmarks.timing import Sample, timed

BEAM = 3  # for every contender, whatever the model's own default
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/jpeg\r\n\r\n'


PR_SET_PDEATHSIG = 1
prctl = ctypes.CDLL(None).prctl  # looked up before there is anything to fork


def end_with_parent() -> None:
    """In a process that has just been forked: have it killed when this one ends, however that may be."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """A contender in processes of its own, asleep (SIGSTOP) except while it is measured.

    settings: of the environment, besides this process's.
    """

    def __init__(self, command: Sequence[str], port: int, log: Path, **settings: object) -> None:
        self.port = port
        line = [sys.executable, *command, "--port", str(port)]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                line,
                cwd=ROOT,
                env={**os.environ, **{name: str(value) for name, value in settings.items()}},
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.log = log

    def wait(self, picture: bytes, seconds: float = 300) -> None:
        """Until a picture is captioned, by the model's own search."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                post(self.port, [picture], beam=None)
            except (OSError, AssertionError):
                time.sleep(0.01)
            else:
                return
        sys.exit(f"error: a server did not start; its last words:\n{self.log.read_text()[-2000:]}")

    def cpu(self) -> float:
        """Seconds of CPU that all its processes have used."""
        total = 0.0
        for process in self._tree():
            times = process.cpu_times()
            total += times.user + times.system
        return total

    def rss(self) -> float:
        """Megabytes of memory of the process that was started: of this service the one that captions."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)

    def pss(self) -> float:
        """Megabytes of memory of all its processes; what they share counts once."""
        return sum(process.memory_full_info().pss for process in self._tree()) / 1e6

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def signal(self, number: int) -> None:
        """To all its processes."""
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End all its processes."""
        with suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
            self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(command: Sequence[str], picture: bytes, **settings: object) -> Iterator[Server]:
    """A server that answers; stopped at the end. settings: of its environment, besides this process's."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(command, free_port(), Path(folder) / "log", **settings)
        try:
            server.wait(picture)
            yield server
        finally:
            server.stop()


def post(port: int, pictures: Sequence[bytes], beam: int | None = BEAM) -> list[float]:
    """POST the pictures one after another over one connection; the seconds each took. beam: None for the model's own.

    Over a bare socket: an HTTP library for Python costs the two cores nearly half a millisecond a request.
    """
    seconds = []
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for picture in pictures:
            asked = request(picture, beam=beam)
            before = time.perf_counter()
            connection.sendall(asked)
            answer = receive(connection)
            seconds.append(time.perf_counter() - before)
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    return seconds


def request(picture: bytes, path: str = "/caption", beam: int | None = BEAM) -> bytes:
    """The HTTP request for a picture's caption."""
    body = PART + picture + b"\r\n--x--\r\n"
    query = "" if beam is None else f"?beam_size={beam}"
    head = f"POST {path}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def receive(connection: socket.socket) -> bytes:
    """One response, which must state its length."""
    answer, end = b"", math.inf
    while len(answer) < end:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError("the server closed the connection before its answer")
        answer += chunk
        if found := re.search(rb"(?is)content-length: (\d+).*?\r\n\r\n", answer):
            end = found.end() + int(found[1])
    return answer


def load(
    server: Server, pictures: Sequence[bytes], clients: int, requests: int, beam: int | None = BEAM
) -> tuple[Sample, list[float]]:
    """`requests` requests by `clients` clients at once: the whole time, and each request's seconds."""
    share = [[pictures[(c + i) % len(pictures)] for i in range(requests // clients)] for c in range(clients)]
    latencies: list[float] = []
    with ThreadPoolExecutor(clients) as pool:

        def run() -> None:
            for seconds in pool.map(lambda mine: post(server.port, mine, beam), share):
                latencies.extend(seconds)

        sample = timed(run, server.cpu)
    return sample, latencies
