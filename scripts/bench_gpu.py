"""What a GPU makes of the torch engine, in eight minutes at most: `scripts/bench-gpu [--json FILE]`.

It needs torch, NumPy, Pillow, safetensors, array-api-compat and this working tree, and nothing of the network. On a CPU
it does the same with tiny batches, which proves the script and measures nothing. Each part is printed as it is done,
so what there was no time for is all that is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from model.captioner import Captioner  # noqa: E402
from model.runtime.engine import Device  # noqa: E402
from model.runtime.torch_engine import TorchEngine  # noqa: E402

WEIGHTS = ROOT / "model" / "weights" / "default"
MODES = ("eager", "compile", "graphs")
SYNCHRONISING = (
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "cudaStreamSynchronize",
    "cudaMemcpy",
    "aten::nonzero",
)


class Bench:
    """One run: what was measured, and how much time is left."""

    def __init__(self, device: str, seconds: float, json_file: Path | None) -> None:
        self.cuda = device == "cuda"
        self.device = device
        self.end = time.monotonic() + seconds
        self.file = json_file
        self.made: dict[str, Any] = {"torch": torch.__version__, "device": self.name(), "cuda": torch.version.cuda}
        self.batches = (1, 8, 64, 256) if self.cuda else (1, 2)
        self.pictures = 200 if self.cuda else 4
        self.each = 4.0 if self.cuda else 0.2  # seconds a figure

    def name(self) -> str:
        """The device's."""
        return torch.cuda.get_device_name() if self.cuda else "CPU: proof of the script, no measurement"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def milliseconds(self, do: Callable[[], object]) -> float:
        """The median of as many as fit into the time of a figure, after one that does not count."""
        do()
        self.wait()
        times: list[float] = []
        began = time.monotonic()
        while not times or (time.monotonic() - began < self.each and len(times) < 200):
            start = time.perf_counter()
            do()
            self.wait()
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times)

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """Do a part, if there is time; what goes wrong in it is its result."""
        if time.monotonic() > self.end:
            print(f"{name}: no time left", flush=True)
            return None
        began = time.monotonic()
        try:
            self.made[name] = make()
        except Exception as error:
            traceback.print_exc()
            self.made[name] = {"error": repr(error)}
        print(f"{name} ({time.monotonic() - began:.0f} s): {json.dumps(self.made[name])}", flush=True)
        if self.file:
            self.file.write_text(json.dumps(self.made, indent=1) + "\n")
        return self.made[name]


def pictures(count: int, size: int) -> NDArray[np.uint8]:
    """Crops of our own sample in random colours, (count, size, size, 3)."""
    rng = np.random.default_rng(0)
    sample = np.asarray(Image.open(ROOT / "app" / "static" / "sample.jpg").convert("RGB"))
    made = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        side = int(rng.integers(min(sample.shape[:2]) // 2, min(sample.shape[:2]) + 1))
        y, x = (int(rng.integers(0, length - side + 1)) for length in sample.shape[:2])
        crop = Image.fromarray(sample[y : y + side, x : x + side]).resize((size, size))
        made[i] = np.clip(np.asarray(crop) * rng.uniform(0.5, 1.3, 3), 0, 255)
    return made


def captioner(engine: TorchEngine) -> Captioner:
    """The engine's own, whose parts are timed and compiled here."""
    return engine._captioner  # noqa: SLF001


@contextmanager
def made_faster(engine: TorchEngine, mode: str) -> Iterator[None]:
    """The engine's encoder and its decoder's step compiled; for `graphs` also replayed as CUDA graphs."""
    encoder, decoder = captioner(engine).encoder, captioner(engine).decoder
    if mode != "eager":
        how = "reduce-overhead" if mode == "graphs" else "default"
        encoder.forward = torch.compile(type(encoder).forward.__get__(encoder), mode=how)  # type: ignore[method-assign]
        decoder.step = torch.compile(type(decoder).step.__get__(decoder), mode=how)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if mode != "eager":
            del encoder.forward
            del decoder.step
            torch.compiler.reset()


def speed(bench: Bench, engine: TorchEngine, mode: str) -> dict[str, Any]:
    """Captions a second, and milliseconds of a batch and of its two parts."""
    rows: dict[str, Any] = {}
    with made_faster(engine, mode):
        for batch in bench.batches:
            pixels = pictures(batch, engine.config.preprocess.size)
            whole = bench.milliseconds(lambda pixels=pixels: engine.caption(pixels))  # type: ignore[misc]
            encode = bench.milliseconds(lambda pixels=pixels: engine.encode(pixels))  # type: ignore[misc]
            rows[str(batch)] = {
                "captions_per_s": round(1000 * batch / whole, 1),
                "ms": round(whole, 2),
                "encode_ms": round(encode, 2),
                "search_ms": round(whole - encode, 2),
            }
            if time.monotonic() > bench.end:
                break
    return rows


def floor(bench: Bench, engine: TorchEngine) -> dict[str, Any]:
    """What the encoder's operations and weights take at the rates that this device is measured to have."""
    device, batch = bench.device, bench.batches[-1]
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    side = 8192 if bench.cuda else 512
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    rate = 2 * side**3 / (bench.milliseconds(lambda: a @ b) / 1000)
    big = torch.empty(2**29 if bench.cuda else 2**22, device=device, dtype=torch.uint8)
    bandwidth = 2 * big.numel() / (bench.milliseconds(lambda: big.clone()) / 1000)
    size = engine.config.preprocess.size
    x = torch.zeros(1, 3, size, size, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        captioner(engine).encoder(x)
    weights = sum(p.numel() * p.element_size() for p in captioner(engine).encoder.parameters())
    arithmetic, reading = 1000 * batch * counter.get_total_flops() / rate, 1000 * weights / bandwidth
    encode = bench.milliseconds(lambda: engine.encode(pictures(batch, size)))
    return {
        "tflops": round(rate / 1e12, 1),
        "gb_per_s": round(bandwidth / 1e9, 1),
        "batch": batch,
        "floor_ms": round(max(arithmetic, reading), 3),
        "encode_ms": round(encode, 3),
        "ratio": round(encode / max(arithmetic, reading), 1),
    }


def agreement(bench: Bench, engine: TorchEngine) -> dict[str, Any]:
    """On how many pictures the device says what the CPU says in float32."""
    cpu = TorchEngine(WEIGHTS, device="cpu", precision="f32")
    shown = pictures(bench.pictures, engine.config.preprocess.size)
    same = mine = 0
    for start in range(0, len(shown), 50):
        part = shown[start : start + 50]
        ours, theirs = engine.caption(part), cpu.caption(part)
        same += sum(a[0].text == b[0].text for a, b in zip(ours, theirs, strict=True))
        mine += len(part)
        if time.monotonic() > bench.end:
            break
    return {"pictures": mine, "same": same}


def profile(bench: Bench, engine: TorchEngine) -> dict[str, Any]:
    """Where a batch's time goes, and how often the host waits for the device, for each step of the search."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if bench.cuda else []
    batch = 64 if bench.cuda else 2
    pixels = pictures(batch, engine.config.preprocess.size)
    captions = engine.caption(pixels)
    steps = max(len(one.tokens) for mine in captions for one in mine)
    with torch.profiler.profile(activities=activities) as seen:
        engine.caption(pixels)
        bench.wait()
    averages = seen.key_averages()
    counts = {event.key: event.count for event in averages}
    waits = {name: counts[name] for name in SYNCHRONISING if name in counts}
    attribute = "self_device_time_total" if bench.cuda else "self_cpu_time_total"
    dearest = sorted(averages, key=lambda event: -getattr(event, attribute))[:12]
    return {
        "batch": batch,
        "steps": steps,
        "waits": waits,
        "waits_a_step": round(waits.get("cudaStreamSynchronize", waits.get("aten::_local_scalar_dense", 0)) / steps, 2),
        "dearest_ms": {event.key[:60]: round(getattr(event, attribute) / 1000, 3) for event in dearest},
    }


def memory(bench: Bench, engine: TorchEngine) -> dict[str, Any]:
    """Megabytes that weights take, and that the largest batch takes at its peak."""
    if not bench.cuda:
        return {}
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    engine.caption(pictures(bench.batches[-1], engine.config.preprocess.size))
    return {"weights_mb": resting >> 20, "peak_mb": torch.cuda.max_memory_allocated() >> 20}


def tests(bench: Bench) -> dict[str, Any]:
    """The tests of the torch engine, on the device where there is one; they need pytest."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-W", "default", "-p", "no:cacheprovider"]
    command += ["tests/model/runtime/test_torch_engine.py"] + ([] if bench.cuda else ["--collect-only"])
    left = max(bench.end - time.monotonic(), 1)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=left)
    return {"status": done.returncode, "said": done.stdout.strip().splitlines()[-1:]}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench-gpu", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seconds", type=float, default=450, help="no part begins later")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device: Device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(device, options.seconds, options.json)
    print(json.dumps(bench.made), flush=True)
    engine = TorchEngine(WEIGHTS, device=device)
    # What is wanted most comes first.
    bench.part("eager", lambda: speed(bench, engine, "eager"))
    bench.part("profile", lambda: profile(bench, engine))
    bench.part("floor", lambda: floor(bench, engine))
    bench.part("memory", lambda: memory(bench, engine))
    bench.part("agreement", lambda: agreement(bench, engine))
    for mode in options.modes:
        if mode != "eager":
            bench.part(mode, lambda mode=mode: speed(bench, engine, mode))  # type: ignore[misc]
    bench.part("tests", lambda: tests(bench))
    return 1 if any(isinstance(made, dict) and "error" in made for made in bench.made.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
