"""One picture at a time, no HTTP: this engine in 8 bits and float32, torch in batches and by lists, and BLIP."""

from __future__ import annotations

from typing import Any

from benchmarks import WEIGHTS
from benchmarks.contenders import Blip, PythonBeam
from benchmarks.load import BEAM
from benchmarks.subject import Subject
from benchmarks.timing import OURS, interleaved, rows
from model.runtime import load_engine


def run(subject: Subject) -> list[dict[str, Any]]:
    """One picture at a time, no HTTP."""
    torch_engine = load_engine(WEIGHTS, device="cpu", engine="torch")
    exact = load_engine(WEIGHTS, device="cpu", engine="openvino", precision="f32")
    python, blip = PythonBeam(), Blip()
    contenders = {
        OURS: subject.each(subject.caption),
        "exact": subject.each(lambda pixels: exact.caption(pixels, subject.search)),
        "torch": subject.each(lambda pixels: torch_engine.caption(pixels, subject.search)),
        "python": subject.each(lambda pixels: python.caption(pixels, subject.search)),
        "blip": subject.each(lambda _: blip.caption(1, subject.tokens, BEAM), pictures=1),
    }
    labels = {
        OURS: f"this engine (OpenVINO; encoder in {subject.engine.precision}, 8-bit decoder weights)",
        "exact": "this engine in float32",
        "torch": "torch eager, float32, the same batched search",
        "python": "torch eager, float32, beam search over Python lists",
        "blip": f"BLIP-base architecture, torch eager, float32, {subject.tokens} tokens",
    }
    slow = {"blip": max(2, subject.budget.rounds // 6)}
    return rows(interleaved(contenders, subject.budget.rounds, slow), labels)
