"""One picture at a time, no HTTP: this engine, ONNX Runtime, torch in batches and by lists, and BLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import WEIGHTS
from benchmarks.contenders import Blip, PythonBeam
from benchmarks.load import BEAM
from benchmarks.onnx_engine import OnnxEngine
from benchmarks.subject import Subject, same_captions
from benchmarks.timing import OURS, interleaved, rows
from model.runtime import load_engine
from model.runtime.engine import CaptionEngine


def run(subject: Subject) -> list[dict[str, Any]]:
    """One picture at a time, no HTTP; of each contender also how many of the pictures' captions are float32's."""
    engines: dict[str, CaptionEngine] = {
        OURS: subject.engine,
        "exact": load_engine(WEIGHTS, device="cpu", engine="openvino", precision="f32"),
        "onnx": OnnxEngine(),
        "onnx-int8": OnnxEngine(int8_step=True),
        "torch": load_engine(WEIGHTS, device="cpu", engine="torch"),
    }
    python, blip = PythonBeam(), Blip()
    captions: dict[str, Callable[[NDArray[np.uint8]], list[str]]] = {
        **{name: texts_of(engine, subject) for name, engine in engines.items()},
        "python": lambda pixels: python.caption(pixels, subject.search),
    }
    contenders = {
        **{name: subject.each(caption) for name, caption in captions.items()},
        "blip": subject.each(lambda _: blip.caption(1, subject.tokens, BEAM), pictures=1),
    }
    labels = {
        OURS: f"this engine (OpenVINO; encoder in {subject.engine.precision}, 8-bit decoder weights)",
        "exact": "this engine in float32",
        "onnx": "ONNX Runtime, float32, the same batched search",
        "onnx-int8": "ONNX Runtime, the decoder's matrices in 8 bits, the same batched search",
        "torch": "torch eager, float32, the same batched search",
        "python": "torch eager, float32, beam search over Python lists",
        "blip": f"BLIP-base architecture, torch eager, float32, {subject.tokens} tokens",
    }
    slow = {"blip": max(2, subject.budget.rounds // 6)}
    table = rows(interleaved(contenders, subject.budget.rounds, slow), labels)
    same = same_captions({name: caption(subject.pixels) for name, caption in captions.items()}, "exact")
    by_label = {labels[name]: {"same": count, "of": len(subject.pixels)} for name, count in same.items()}
    return [row | by_label.get(row["name"], {}) for row in table]


def texts_of(engine: CaptionEngine, subject: Subject) -> Callable[[NDArray[np.uint8]], list[str]]:
    """The best caption of each picture."""
    return lambda pixels: [found[0].text for found in engine.caption(pixels, subject.search)]
