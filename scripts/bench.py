"""Measures this project against other ways of doing the same, side by side; see `scripts/bench --help`.

Contenders take turns within every round, so that whatever else slows the machine slows all of them;
a ratio is the median over rounds of theirs to ours in the same round. CPU time is that of all threads
and processes of a contender. Pictures are drawn by this file from a seed unless --pictures names some.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from contenders import ROOT, WEIGHTS, Blip, PythonBeam
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import docs

from app import images  # isort: skip
from app.schemas import caption_out  # isort: skip
import openvino as ov  # isort: skip
import openvino.opset13 as opset  # isort: skip
from model.caption import Caption  # isort: skip
from model.runtime import CaptionEngine, load_engine, openvino_engine  # isort: skip
from model.runtime.openvino_engine import OpenVINOLane, OpenVINORegions, OpenVINOStepper  # isort: skip
from model.search import beam_search  # isort: skip

openvino_engine.MAX_OTHER_SEARCHES = 1000  # all beam sizes are compared as the first that are asked for are served
PROGRESS = sys.stderr
MAX_PIXELS = 100_000_000
OURS = "ours"
BEAM = 3  # for every contender, whatever the model's own default
SETTLE = 0.2  # seconds before each turn: the threads of torch's OpenMP spin on for a while, beside whoever comes next
HEAD = (
    f"POST /caption?beam_size={BEAM} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n"
).encode()
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/jpeg\r\n\r\n'


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is measured."""

    rounds: int
    requests: int  # of each client a round
    starts: int
    soak: int
    agreement: int  # pictures


FULL = Budget(rounds=30, requests=10, starts=10, soak=5000, agreement=200)
QUICK = Budget(rounds=3, requests=3, starts=2, soak=200, agreement=8)


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one run, by the clock and of CPU."""

    wall: float
    cpu: float


# --- pictures ----------------------------------------------------------------------------------


def drawn(count: int, width: int, height: int) -> Iterator[Image.Image]:
    """Pictures of soft colours, noise and shapes, the same every time: they compress about as photographs do."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        few = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        soft = few.resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(soft)
        for _ in range(6):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
            r = int(rng.integers(height // 20, height // 4))
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
        noise = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
        yield Image.fromarray(np.clip(np.asarray(soft, np.float32) + noise, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    """`image` as a JPEG of ordinary quality."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def read_pictures(source: Path | None, count: int) -> list[bytes]:
    """`count` picture files: from a folder or a tar, or drawn at 640 x 480."""
    if source is None:
        return [jpeg(image) for image in drawn(count, 640, 480)]
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        found = [path.read_bytes() for path in files[:count]]
    else:
        with tarfile.open(source) as tar:
            members = [member for member in tar if member.isfile()][:count]
            found = [handle.read() for member in members if (handle := tar.extractfile(member))]
    if not found:
        sys.exit(f"error: no pictures in {source}")
    return found


# --- timing ------------------------------------------------------------------------------------


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
                time.sleep(SETTLE)
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
                "min_ms": _ms(min(s.wall for s in done) / per),
                "median_ms": _ms(statistics.median(s.wall for s in done) / per),
                "cpu_ms": _ms(statistics.median(s.cpu for s in done) / per),
                "ratio": round(statistics.median(m.wall / o.wall for m, o in pairs), 2),
                "cpu_ratio": round(statistics.median(m.cpu / o.cpu for m, o in pairs if o.cpu), 2),
            }
        )
    return table


def summary(samples: Sequence[Sample], per: int = 1) -> dict[str, float]:
    """Minimum, median and CPU milliseconds of one thing."""
    return {
        "min_ms": _ms(min(s.wall for s in samples) / per),
        "median_ms": _ms(statistics.median(s.wall for s in samples) / per),
        "cpu_ms": _ms(statistics.median(s.cpu for s in samples) / per),
    }


def _ms(seconds: float) -> float:
    return float(f"{1000 * seconds:.4g}")


# --- servers -----------------------------------------------------------------------------------


class Server:
    """A contender in processes of its own, asleep (SIGSTOP) except while it is measured."""

    def __init__(self, command: Sequence[str], port: int, log: Path) -> None:
        self.port = port
        line = [sys.executable, *command, "--port", str(port)]
        with log.open("w") as output:
            self.process = subprocess.Popen(line, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        self.log = log

    def wait(self, picture: bytes, seconds: float = 300) -> None:
        """Until a picture is captioned."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                post(self.port, [picture])
            except (OSError, AssertionError):
                time.sleep(0.2)
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
        """Megabytes of memory of all its processes."""
        return sum(process.memory_info().rss for process in self._tree()) / 1e6

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
def serving(command: Sequence[str], picture: bytes) -> Iterator[Server]:
    """A server that answers; stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(command, free_port(), Path(folder) / "log")
        try:
            server.wait(picture)
            yield server
        finally:
            server.stop()


def post(port: int, pictures: Sequence[bytes]) -> list[float]:
    """POST the pictures one after another over one connection; the seconds each took.

    Over a bare socket: an HTTP library for Python costs the two cores nearly half a millisecond a request.
    """
    seconds = []
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for picture in pictures:
            body = PART + picture + b"\r\n--x--\r\n"
            request = HEAD % len(body) + body
            before = time.perf_counter()
            connection.sendall(request)
            answer = receive(connection)
            seconds.append(time.perf_counter() - before)
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    return seconds


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


def load(server: Server, pictures: Sequence[bytes], clients: int, requests: int) -> tuple[Sample, list[float]]:
    """`requests` requests by `clients` clients at once: the whole time, and each request's seconds."""
    share = [[pictures[(c + i) % len(pictures)] for i in range(requests // clients)] for c in range(clients)]
    latencies: list[float] = []
    with ThreadPoolExecutor(clients) as pool:

        def run() -> None:
            for seconds in pool.map(lambda mine: post(server.port, mine), share):
                latencies.extend(seconds)

        sample = timed(run, server.cpu)
    return sample, latencies


# --- what is measured --------------------------------------------------------------------------


class Bench:
    """One run: the engine, the pictures, and a budget."""

    def __init__(self, budget: Budget, source: Path | None) -> None:
        self.budget = budget
        self.source = source
        self.files = read_pictures(source, 16)
        self.engine = load_engine(WEIGHTS, device="cpu", engine="openvino")
        self.search = replace(self.engine.config.search, beam_size=BEAM)
        self.size = self.engine.config.preprocess.size
        self.pixels = np.stack([self.prepare(data) for data in self.files])
        self.tokens = round(statistics.mean(len(found[0].tokens) for found in self.caption(self.pixels)))

    def caption(self, pixels: Any) -> list[list[Caption]]:
        """The engine's captions of a batch."""
        return self.engine.caption(pixels, self.search)

    def prepare(self, data: bytes) -> Any:
        """A file -> the engine's input, as the service does it."""
        return self.engine.preprocess(images.read(data, MAX_PIXELS, self.size).image)

    def one(self, index: int) -> Any:
        """A batch of one picture."""
        index %= len(self.pixels)
        return self.pixels[index : index + 1]

    def each(self, caption: Callable[[Any], object], pictures: int = 5) -> Callable[[], Sample]:
        """A contender that captions the next `pictures`, one at a time, after one that wakes it as the servers are."""
        count = 0

        def run() -> Sample:
            nonlocal count
            caption(self.one(count))
            sample = timed(lambda: [caption(self.one(count + 1 + i)) for i in range(pictures)])
            count += 1 + pictures
            return Sample(sample.wall / pictures, sample.cpu / pictures)

        return run

    def engines(self) -> list[dict[str, Any]]:
        """One picture at a time, no HTTP: contenders 1, 2, 4 and 5."""
        torch_engine = load_engine(WEIGHTS, device="cpu", engine="torch")
        exact = load_engine(WEIGHTS, device="cpu", engine="openvino", precision="f32")
        python, blip = PythonBeam(), Blip()
        contenders = {
            OURS: self.each(self.caption),
            "exact": self.each(lambda pixels: exact.caption(pixels, self.search)),
            "torch": self.each(lambda pixels: torch_engine.caption(pixels, self.search)),
            "python": self.each(lambda pixels: python.caption(pixels, self.search)),
            "blip": self.each(lambda _: blip.caption(1, self.tokens, BEAM), pictures=1),
        }
        labels = {
            OURS: "this engine (OpenVINO, bf16 where the CPU has it, 8-bit decoder weights)",
            "exact": "this engine in float32",
            "torch": "torch eager, float32, the same batched search",
            "python": "torch eager, float32, beam search over Python lists",
            "blip": f"BLIP-base architecture, torch eager, float32, {self.tokens} tokens",
        }
        slow = {"blip": max(2, self.budget.rounds // 6)}
        return rows(interleaved(contenders, self.budget.rounds, slow), labels)

    def servers(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, float]]:
        """Over HTTP, at one client (a request) and at 16 (a request, of the whole time): contenders 1, 2 and 3."""
        here = str(ROOT / "scripts" / "servers.py")
        commands = {
            OURS: ["-m", "app"],
            **{name: [here, name, "--beam", str(BEAM)] for name in ("tutorial", "litserve-torch", "litserve-ours")},
        }
        labels = {
            OURS: "this service",
            "tutorial": "FastAPI + torch eager, one request at a time",
            "litserve-torch": "LitServe + the same torch model",
            "litserve-ours": "LitServe + this engine",
        }
        # As many for each of the 16: with fewer, most of a round would be its beginning and its end.
        one, many = self.budget.requests, 16 * self.budget.requests
        with ExitStack() as stack:
            servers = {}
            for name, command in commands.items():
                servers[name] = stack.enter_context(serving(command, self.files[0]))
                servers[name].signal(signal.SIGSTOP)

            def turn(server: Server, clients: int, requests: int) -> Sample:
                server.signal(signal.SIGCONT)
                try:
                    post(server.port, self.files[:1])  # awake
                    return load(server, self.files, clients, requests)[0]
                finally:
                    server.signal(signal.SIGSTOP)

            def at(clients: int, requests: int) -> dict[str, Callable[[], Sample]]:
                return {name: partial(turn, server, clients, requests) for name, server in servers.items()}

            def engine() -> Sample:
                self.caption(self.one(0))  # awake
                return timed(lambda: [self.caption(self.one(i)) for i in range(one)])

            def from_file() -> Sample:
                self.caption(self.one(0))  # awake
                return timed(lambda: [self.caption(self.prepare(file)[None]) for file in self.files[:one]])

            single = interleaved(at(1, one), self.budget.rounds)
            crowd = interleaved(at(16, many), max(3, self.budget.rounds // 3))
            # HTTP against the bare engine on the same pictures: in turns as well.
            turns = {OURS: engine, "file": from_file, "http": at(1, one)[OURS]}
            both = interleaved(turns, self.budget.rounds)
        pixels, file, http = rows(both, {name: name for name in turns}, one)
        whole = rows({OURS: both["file"], "http": both["http"]}, {OURS: "file", "http": "HTTP"}, one)[1]
        return rows(single, labels, one), rows(crowd, labels, many), {
            "engine_ms": pixels["median_ms"], "file_ms": file["median_ms"], "http_ms": http["median_ms"],
            "ratio": http["ratio"], "ratio_to_file": whole["ratio"],
        }  # fmt: skip

    def parts(self) -> list[dict[str, Any]]:
        """Where a caption's time goes, and the floor of the two parts that compute."""
        rate, bandwidth = flops(), bytes_per_second()
        encoder_ops, step_ops, words = operations(self.engine)
        graphs = {path.stem: constant_bytes(path) for path in (WEIGHTS / "graphs").glob("*.xml")}
        seconds: dict[str, list[float]] = {}
        steps = statistics.median(self.steps(self.one(i)) for i in range(min(len(self.files), 20)))
        inside = 0.0
        infer = ov.InferRequest.infer

        def measured(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            before = time.perf_counter()
            try:
                return infer(*args, **kwargs)
            finally:
                inside += time.perf_counter() - before

        def part(name: str, run: Callable[[], Any]) -> Any:
            before = time.perf_counter()
            result = run()
            seconds.setdefault(name, []).append(time.perf_counter() - before)
            return result

        ov.InferRequest.infer = measured
        try:
            for number in range(self.budget.rounds * 3):
                data = self.files[number % len(self.files)]
                picture = part("decode", partial(images.read, data, MAX_PIXELS, self.size))
                pixels = part("preprocess", partial(self.engine.preprocess, picture.image))
                regions = part("encode", partial(self.engine.encode, pixels[None]))
                inside = 0.0
                captions = part("generate", partial(self.engine.generate, regions, self.search))
                seconds.setdefault("steps", []).append(inside)
                seconds.setdefault("search", []).append(seconds["generate"][-1] - inside)
                part("json", partial(as_json, captions[0][0]))
        finally:
            ov.InferRequest.infer = infer
        floors = {
            "encode": max(encoder_ops / rate, graphs["encoder"] / bandwidth),
            # Of the words' vectors as layer 1 sees them a step reads those of its words alone.
            "steps": steps * max(BEAM * step_ops / rate, (graphs["step-int8"] - words) / bandwidth),
        }
        names = {
            "decode": "decode the JPEG",
            "preprocess": "resize to the encoder's input",
            "encode": "encoder",
            "steps": f"decoding and search, one graph ({steps:g} steps)",
            "search": "words out of it",
            "json": "answer as JSON",
        }
        return [
            {
                "name": label,
                "min_ms": _ms(min(seconds[key])),
                "median_ms": _ms(statistics.median(seconds[key])),
                "floor_ms": _ms(floors[key]) if key in floors else None,
            }
            for key, label in names.items()
        ]

    def steps(self, pixels: NDArray[np.uint8]) -> int:
        """How many steps the search of a picture takes."""

        class Counting(OpenVINOStepper):
            steps = 0

            def step(self, *arguments: Any) -> NDArray[np.float32]:
                self.steps += 1
                return super().step(*arguments)

        regions, lane = self.engine.encode(pixels), self.engine.lanes[0]
        assert isinstance(regions, OpenVINORegions)
        assert isinstance(lane, OpenVINOLane)
        stepper = Counting(lane.step, regions)
        beam_search(stepper, self.search)
        return stepper.steps

    def costs(self) -> dict[str, list[dict[str, Any]]]:
        """How the cost of a caption grows."""
        rounds = max(3, self.budget.rounds // 3)

        def table(
            key: str, variants: Mapping[Any, Callable[[], object]], per: Callable[[Any], int] = lambda _: 1
        ) -> list[dict[str, Any]]:
            samples = interleaved({str(v): partial(timed, run) for v, run in variants.items()}, rounds)
            return [{key: v, **summary([s for s in samples[str(v)] if s], per(v))} for v in variants]

        one = self.one(0)
        regions = self.engine.encode(one)
        files = {
            f"{w} x {h}": jpeg(image)
            for w, h in ((224, 224), (640, 480), (1600, 1200), (4000, 3000), (8000, 6000))
            for image in drawn(1, w, h)
        }
        batches = {n: np.concatenate([self.one(i) for i in range(n)]) for n in (1, 2, 4, 8, 16, 32)}
        beams = {k: replace(self.search, beam_size=k) for k in (1, 2, 3, 5, 8, 10)}
        lengths = {n: replace(self.search, max_length=n) for n in (2, 4, 6, 8, 10)}
        caption, generate = self.engine.caption, self.engine.generate

        def from_file(data: bytes) -> None:
            self.caption(self.prepare(data)[None])

        return {
            "size": table("size", {name: partial(from_file, data) for name, data in files.items()}),
            "beam": table("beam", {beam: partial(caption, one, search) for beam, search in beams.items()}),
            "length": table("words", {n: partial(generate, regions, search) for n, search in lengths.items()}),
            "batch": table("batch", {n: partial(self.caption, pixels) for n, pixels in batches.items()}, int),
        }

    def clients(self) -> list[dict[str, Any]]:
        """Latency and throughput of the service against the number of clients."""
        table = []
        with serving(["-m", "app"], self.files[0]) as server:
            for clients in (1, 2, 4, 8, 16, 32):
                latencies: list[float] = []
                speeds = []
                for _ in range(max(2, self.budget.rounds // 6)):
                    sample, seconds = load(server, self.files, clients, clients * self.budget.requests)
                    latencies += seconds
                    speeds.append(clients * self.budget.requests / sample.wall)
                latencies.sort()
                table.append(
                    {
                        "clients": clients,
                        "p50_ms": _ms(statistics.median(latencies)),
                        "p95_ms": _ms(latencies[math.ceil(0.95 * len(latencies)) - 1]),
                        "captions_per_s": round(statistics.median(speeds), 1),
                    }
                )
                print(".", end="", file=PROGRESS, flush=True)
        print(file=PROGRESS)
        return table

    def large_jpeg(self) -> dict[str, Any]:
        """A 12-megapixel JPEG: reduced decoding against full, and whether the captions are the same.

        At 1/8 libjpeg computes one number for 64 pixels, so what is left is reading the file's codes. How
        often two ways to shrink the full decode get the same caption is the most that can be asked for; how
        often the engine in float32 does tells what is due to rounding.
        """

        def full(data: bytes, eighth: bool = False) -> Image.Image:
            image = Image.open(io.BytesIO(data))
            if eighth:
                image.draft(None, (image.width // 8, image.height // 8))
            image.load()
            return image

        def plain(data: bytes) -> Any:
            return np.asarray(full(data).resize((self.size, self.size), Image.Resampling.BICUBIC))

        (picture,) = drawn(1, 4000, 3000)
        data = jpeg(picture)
        contenders: dict[str, Callable[[], object]] = {
            OURS: lambda: self.prepare(data),
            "same resize": lambda: self.engine.preprocess(full(data)),
            "plain": lambda: plain(data),
            "decode": lambda: images.read(data, MAX_PIXELS, self.size),
            "codes": lambda: full(data, eighth=True),
            "full decode": lambda: full(data),
        }
        labels = {
            OURS: "as the service does it: decoded at 1/4, resized",
            "same resize": "decoded in full, the same resize",
            "plain": "decoded in full, plain bicubic resize",
            "decode": "only decoding, at 1/4",
            "codes": "only decoding, at 1/8: hardly more than reading the file's codes",
            "full decode": "only decoding, in full",
        }
        turns = {name: partial(timed, run) for name, run in contenders.items()}
        table = rows(interleaved(turns, max(3, self.budget.rounds // 3)), labels)
        exact = load_engine(WEIGHTS, device="cpu", engine="openvino", precision="f32")
        same = same_exact = same_in_full = 0
        files = read_pictures(self.source, self.budget.agreement)
        for original in files:
            big = jpeg(Image.open(io.BytesIO(original)).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC))
            pixels = np.stack([self.prepare(big), self.engine.preprocess(full(big)), plain(big)])
            reduced, whole, other = (found[0].text for found in self.caption(pixels))
            same += reduced == whole
            same_in_full += whole == other
            reduced, whole = (found[0].text for found in exact.caption(pixels[:2], self.search))
            same_exact += reduced == whole
        return {
            "rows": table, "megabytes": round(len(data) / 1e6, 1), "pictures": len(files), "same_captions": same,
            "same_captions_exact": same_exact, "same_captions_in_full": same_in_full,
        }  # fmt: skip

    def start_up(self) -> dict[str, Any]:
        """From process start to the first caption, and memory over many requests."""
        walls, cpus, resident = [], [], []
        for _ in range(self.budget.starts):
            before = time.perf_counter()
            with serving(["-m", "app"], self.files[0]) as server:
                walls.append(time.perf_counter() - before)
                cpus.append(server.cpu())
                resident.append(server.rss())
            print(".", end="", file=PROGRESS, flush=True)
        with serving(["-m", "app"], self.files[0]) as server:
            load(server, self.files, 4, 100)
            early = server.rss()
            load(server, self.files, 4, self.budget.soak)
            late = server.rss()
        print(file=PROGRESS)
        return {
            "starts": self.budget.starts,
            "cpu_s": {"min": round(min(cpus), 2), "median": round(statistics.median(cpus), 2)},
            "wall_s": {"min": round(min(walls), 2), "median": round(statistics.median(walls), 2)},
            "rss_mb": round(statistics.median(resident)),
            "rss_after_100_mb": round(early),
            "requests": self.budget.soak,
            "rss_after_all_mb": round(late),
        }


def as_json(caption: Caption) -> str:
    """`caption` as the service answers."""
    return caption_out(caption).model_dump_json()


def flops() -> float:
    """Operations a second of a large matrix product in the fastest number format OpenVINO picks for this CPU."""
    n = 1536
    a, b = (np.random.default_rng(i).random((n, n), np.float32) for i in (0, 1))
    left = opset.parameter([n, n], np.float32)
    product = ov.Model([opset.matmul(left, opset.constant(b), False, False)], [left])
    request = ov.Core().compile_model(product, "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    return float(2 * n**3 / min(timed(lambda: request.infer([a])).wall for _ in range(20)))


def bytes_per_second() -> float:
    """Memory bandwidth for reading: the best of several sums over an array far larger than the caches."""
    array = np.ones(64_000_000, np.float32)
    threads = os.cpu_count() or 1
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:
        return array.nbytes / min(timed(lambda: list(pool.map(np.sum, parts))).wall for _ in range(8))


def constant_bytes(graph: Path) -> int:
    """Size of all constants of a graph (.xml)."""
    data = (layer.find("data") for layer in ET.parse(graph).iter("layer") if layer.get("type") == "Const")
    return sum(int(constant.attrib["size"]) for constant in data if constant is not None)


def operations(engine: CaptionEngine) -> tuple[float, float, int]:
    """Arithmetic of the encoder for one picture and of one step for one hypothesis (a multiply-add is 2).

    Also how many numbers are the words' vectors as layer 1 sees them, which are looked up.
    """
    import torch
    from torch import nn

    from model.checkpoint import load_captioner

    captioner = load_captioner(WEIGHTS)
    total = 0.0

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output.numel() // output.shape[-1]
        total += 2 * weight.numel() * positions

    hooks = [m.register_forward_hook(count) for m in captioner.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    size = engine.config.preprocess.size
    with torch.inference_mode():
        captioner.encode(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    decoder = captioner.decoder
    prepared = decoder.prepare()
    looked_up = 0 if prepared is None else prepared.words.numel()
    return total, 2.0 * sum(parameter.numel() for parameter in decoder.parameters()), looked_up


def machine() -> dict[str, Any]:
    """What it was measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    packages = ("numpy", "openvino", "pillow", "fastapi", "uvicorn", "torch", "litserve", "transformers")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
    }


SECTIONS = ("engines", "servers", "parts", "costs", "clients", "large_jpeg", "start_up")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rounds: to see that it works, not to quote")
    parser.add_argument("--pictures", type=Path, help="a folder or tar of pictures, in place of drawn ones")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="measure just these")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.json, .md and the plot")
    options = parser.parse_args(arguments)

    bench = Bench(QUICK if options.quick else FULL, options.pictures)
    about = {
        "machine": machine(),
        "model": f"{bench.engine.config.name} {bench.engine.config.version}",
        "pictures": "given by --pictures" if options.pictures else "drawn, 640 x 480",
        "tokens": bench.tokens,
        "beam": BEAM,
    }
    earlier = json.loads(docs.BENCHMARKS.read_text()) if docs.BENCHMARKS.exists() else {}
    # What another run measured stays, where it measured the same thing.
    results: dict[str, Any] = {**earlier, **about} if about.items() <= earlier.items() else about
    for section in options.only:
        print(section, end=" ", file=PROGRESS, flush=True)
        if section == "servers":
            results["one_client"], results["sixteen_clients"], results["overhead"] = bench.servers()
        else:
            results[section] = getattr(bench, section)()
    if options.write:
        docs.BENCHMARKS.write_text(json.dumps(results, indent=1) + "\n")
    print(docs.benchmarks_markdown(results))
    if options.write:
        docs.plot(results)
        docs.write()


if __name__ == "__main__":
    main()
