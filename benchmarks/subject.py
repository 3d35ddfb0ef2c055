"""What all sections measure: this engine and its pictures, within a budget."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import WEIGHTS
from benchmarks.load import BEAM
from benchmarks.pictures import read_pictures
from benchmarks.timing import Sample, timed
from model import images
from model.caption import Caption
from model.config import SearchConfig
from model.runtime import load_engine, openvino_engine
from model.runtime.engine import Precision

MAX_PIXELS = 100_000_000


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


class Subject:
    """What is measured: the engine, on pictures, within a budget."""

    def __init__(self, budget: Budget, source: Path | None, precision: Precision = "auto") -> None:
        # All beam sizes are compared as the first that are asked for are served.
        openvino_engine.MAX_OTHER_SEARCHES = 1000
        self.budget = budget
        self.source = source
        self.files = read_pictures(source, 16)
        self.engine = load_engine(WEIGHTS, device="cpu", engine="openvino", precision=precision)
        self.search = self.with_beam(BEAM)
        self.size = self.engine.config.preprocess.size
        self.pixels = np.stack([self.prepare(data) for data in self.files])
        self.tokens = round(statistics.mean(len(found[0].tokens) for found in self.caption(self.pixels)))

    def with_beam(self, beam: int) -> SearchConfig:
        """The release's search, with another beam."""
        return replace(self.engine.config.search, beam_size=beam)

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


def same_captions(texts: Mapping[str, Sequence[str]], reference: str) -> dict[str, int]:
    """Of how many pictures each contender's caption is the one of `reference`."""
    right = texts[reference]
    return {name: sum(text == other for text, other in zip(mine, right, strict=True)) for name, mine in texts.items()}
