"""How the cost of a caption grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.pictures import drawn, jpeg
from benchmarks.subject import Subject
from benchmarks.timing import interleaved, summary, timed


def run(subject: Subject) -> dict[str, list[dict[str, Any]]]:
    """How the cost of a caption grows."""
    rounds = max(3, subject.budget.rounds // 3)

    def table(
        key: str, variants: Mapping[Any, Callable[[], object]], per: Callable[[Any], int] = lambda _: 1
    ) -> list[dict[str, Any]]:
        samples = interleaved({str(v): partial(timed, run) for v, run in variants.items()}, rounds)
        return [{key: v, **summary([s for s in samples[str(v)] if s], per(v))} for v in variants]

    one = subject.one(0)
    regions = subject.engine.encode(one)
    files = {
        f"{w} x {h}": jpeg(image)
        for w, h in ((224, 224), (640, 480), (1600, 1200), (4000, 3000), (8000, 6000))
        for image in drawn(1, w, h)
    }
    batches = {n: np.concatenate([subject.one(i) for i in range(n)]) for n in (1, 2, 4, 8, 16, 32)}
    beams = {k: replace(subject.search, beam_size=k) for k in (1, 2, 3, 5, 8, 10)}
    lengths = {n: replace(subject.search, max_length=n) for n in (2, 4, 6, 8, 10)}
    caption, generate = subject.engine.caption, subject.engine.generate

    def from_file(data: bytes) -> None:
        subject.caption(subject.prepare(data)[None])

    return {
        "size": table("size", {name: partial(from_file, data) for name, data in files.items()}),
        "beam": table("beam", {beam: partial(caption, one, search_config) for beam, search_config in beams.items()}),
        "length": table(
            "words", {n: partial(generate, regions, search_config) for n, search_config in lengths.items()}
        ),
        "batch": table("batch", {n: partial(subject.caption, pixels) for n, pixels in batches.items()}, int),
    }
