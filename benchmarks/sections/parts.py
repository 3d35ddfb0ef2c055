"""Where a caption's time goes, and the least that its parts can take."""

from __future__ import annotations

import os
import statistics
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as opset
from numpy.typing import NDArray
from PIL import Image

from app.schemas import caption_out
from benchmarks import WEIGHTS
from benchmarks.load import BEAM
from benchmarks.subject import MAX_PIXELS, Subject
from benchmarks.timing import milliseconds, timed
from model import images, preprocess
from model.caption import Caption
from model.checkpoint import WEIGHTS as TENSORS
from model.runtime import CaptionEngine
from model.runtime.cpu import may_use_bf16
from model.runtime.openvino_engine import OpenVINOEngine, OpenVINOLane, OpenVINORegions, OpenVINOStepper
from model.search import beam_search


def run(subject: Subject) -> list[dict[str, Any]]:
    """Where a caption's time goes, and the least that its parts can take."""
    floor = {**floors(subject), **picture_floors(subject)}
    seconds: dict[str, list[float]] = {}
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
        for number in range(subject.budget.rounds * 12):  # so many that the minima settle
            data = subject.files[number % len(subject.files)]
            picture = part("decode", partial(images.read, data, MAX_PIXELS, subject.size))
            part("fast", partial(preprocess.resize, picture.image, subject.size, True))
            pixels = part("preprocess", partial(subject.engine.preprocess, picture.image))
            regions = part("encode", partial(subject.engine.encode, pixels[None]))
            inside = 0.0
            captions = part("generate", partial(subject.engine.generate, regions, subject.search))
            seconds.setdefault("steps", []).append(inside)
            seconds.setdefault("search", []).append(seconds["generate"][-1] - inside)
            part("json", partial(as_json, captions[0][0]))
    finally:
        ov.InferRequest.infer = infer
    names = {
        "decode": "decode the JPEG",
        "preprocess": "resize to the encoder's input",
        "fast": "the same by SIMD (CAPTION_RESIZER=fast)",
        "encode": "encoder",
        "steps": "decoding and search, one graph",
        "search": "words out of it",
        "json": "answer as JSON",
    }
    rows: dict[str, dict[str, Any]] = {
        key: {
            "name": label,
            "min_ms": milliseconds(min(seconds[key])),
            "median_ms": milliseconds(statistics.median(seconds[key])),
            "floor_ms": milliseconds(floor[key]) if key in floor else None,
        }
        for key, label in names.items()
    }
    rows["encode"]["kernels_ms"] = milliseconds(kernels(subject))
    return [*rows.values(), _sum("sum", rows, "fast"), _sum("sum, resized fast", rows, "preprocess")]


def _sum(name: str, rows: Mapping[str, Mapping[str, Any]], without: str) -> dict[str, Any]:
    """All parts together, without one of the two resizers; the floor is that of both."""
    parts = [row for key, row in rows.items() if key != without]
    floor = sum(row["floor_ms"] or 0 for row in rows.values())
    times = {column: sum(row[column] for row in parts) for column in ("min_ms", "median_ms")}
    return {"name": name, **{column: milliseconds(ms / 1000) for column, ms in {**times, "floor_ms": floor}.items()}}


def kernels(subject: Subject) -> float:
    """Seconds that the encoder's layers take by OpenVINO's own clock, each layer's least: the rest is around them."""
    engine, core = subject.engine, ov.Core()
    assert isinstance(engine, OpenVINOEngine)
    name = "encoder-int8" if engine.precision == "int8" else "encoder"
    graph = core.read_model(WEIGHTS / "graphs" / f"{name}.xml", WEIGHTS / TENSORS)
    graph.reshape({"pixels": [1, subject.size, subject.size, 3]})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": engine.threads, "PERF_COUNT": True}
    request = core.compile_model(graph, "CPU", settings).create_infer_request()
    least: dict[str, float] = {}
    for number in range(50):
        request.infer({"pixels": subject.one(number)})
        for layer in request.profiling_info:
            seconds = layer.real_time.total_seconds()
            least[layer.node_name] = min(seconds, least.get(layer.node_name, seconds))
    return sum(least.values())


def floors(subject: Subject) -> dict[str, float]:
    """Seconds that the encoder and all steps must take.

    Their operations over the measured rate, or the weights they read over the measured bandwidth.
    """
    rate, bandwidth = operations_per_second(), bytes_per_second()
    int8 = subject.engine.precision == "int8"
    encoder_rate = operations_per_second(int8=True) if int8 else rate
    encoder_ops, step_ops, words = operations(subject.engine)
    graphs = {path.stem: constant_bytes(path) for path in (WEIGHTS / "graphs").glob("*.xml")}
    steps = statistics.median(steps_of(subject, subject.one(i)) for i in range(min(len(subject.files), 20)))
    return {
        "encode": max(encoder_ops / encoder_rate, graphs["encoder-int8" if int8 else "encoder"] / bandwidth),
        # Of the words' vectors as layer 1 sees them a step reads those of its words alone.
        "steps": steps * max(BEAM * step_ops / rate, (graphs["step-int8"] - words) / bandwidth),
    }


def picture_floors(subject: Subject) -> dict[str, float]:
    """Seconds of the fastest libraries at hand: OpenCV's for decoding in full, fast_image_resize for resizing that."""
    import cv2
    import cykooz_resizer as resizer

    bicubic = resizer.ResizeOptions(resizer.ResizeAlg.convolution(resizer.FilterType.catmull_rom))
    small = Image.new("RGB", (subject.size, subject.size))
    decode, resize = [], []
    for data in subject.files * 3:
        file = np.frombuffer(data, np.uint8)
        decode.append(timed(partial(cv2.imdecode, file, cv2.IMREAD_COLOR)).wall)
        image = images.read(data, MAX_PIXELS).image
        resize.append(timed(partial(resizer.Resizer().resize_pil, image, small, bicubic)).wall)
    return {"decode": min(decode), "preprocess": min(resize)}


def steps_of(subject: Subject, pixels: NDArray[np.uint8]) -> int:
    """How many steps the search of a picture takes."""

    class Counting(OpenVINOStepper):
        steps = 0

        def step(self, *arguments: Any) -> NDArray[np.float32]:
            self.steps += 1
            return super().step(*arguments)

    regions, lane = subject.engine.encode(pixels), subject.engine.lanes[0]
    assert isinstance(regions, OpenVINORegions)
    assert isinstance(lane, OpenVINOLane)
    stepper = Counting(lane.step, regions)
    beam_search(stepper, subject.search)
    return stepper.steps


def as_json(caption: Caption) -> str:
    """`caption` as the service answers."""
    return caption_out(caption).model_dump_json()


def operations_per_second(int8: bool = False) -> float:
    """Of a large matrix product in the fastest float format OpenVINO picks for this CPU, or of 8-bit numbers."""
    n = 1536
    a, b = (np.random.default_rng(i).random((n, n), np.float32) for i in (0, 1))
    left = opset.parameter([n, n], np.float32)
    inputs, right = left, opset.constant(b)
    if int8:
        zero, one = np.float32(0), np.float32(1)
        inputs = opset.fake_quantize(left, zero, one, zero, one, 256)
        integers = opset.convert(opset.constant(np.rint(127 * b).astype(np.int8)), "f32")
        right = opset.multiply(integers, opset.constant(np.float32(1 / 127)))
    product = ov.Model([opset.matmul(inputs, right, False, False)], [left])
    settings = {"PERFORMANCE_HINT": "LATENCY", **({} if may_use_bf16() else {"INFERENCE_PRECISION_HINT": "f32"})}
    request = ov.Core().compile_model(product, "CPU", settings).create_infer_request()
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
