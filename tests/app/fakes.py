"""A small, deterministic engine: what it says depends on the picture alone, so crossed answers show."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from app.decorative import is_decorative
from app.errors import of_image
from app.pictures.guard import Decoded, Guard
from model import images
from model.caption import Alternative, Caption, Explanation, Token
from model.config import ModelConfig, SearchConfig
from model.errors import ImageError
from model.preprocess import to_pixels
from model.runtime.engine import CaptionEngine, Lane, Regions
from model.vocabulary import SPECIAL, Vocabulary

WORDS = ("red", "green", "blue", "big", "small", "old", "young", "wet", "dry", "fast", "slow", "dark", "light",
         "near", "far", "round")  # fmt: skip
POISON = (250, 0, 250)  # a picture of this colour makes the engine fail


class FakeRegions(Regions):
    """The mean colour of each picture."""

    def __init__(self, colours: NDArray[np.int64]) -> None:
        self.colours = colours

    def __len__(self) -> int:
        return len(self.colours)

    def select(self, rows: Sequence[int]) -> FakeRegions:
        return FakeRegions(self.colours[list(rows)])

    @classmethod
    def join(cls, parts: Sequence[FakeRegions]) -> FakeRegions:
        return cls(np.concatenate([part.colours for part in parts]))


class FakeLane(Lane):
    """Does as its engine, and counts."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.calls = engine, 0

    def encode(self, pixels: NDArray[np.uint8]) -> FakeRegions:
        self.calls += 1
        return self.engine.encode(pixels)

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        self.calls += 1
        return self.engine.generate(regions, search_config, explain)


class FakeEngine(CaptionEngine):
    """Names a picture's mean colour in words; fails on `POISON`; calls `on_batch` in the engine's threads.

    lanes: how many there are, none of which gains from batches; 0 for the engine itself as its only lane, which does.
    """

    name, device = "fake", "cpu"

    def __init__(self, on_batch: Callable[[str, int], None] = lambda stage, size: None, lanes: int = 0) -> None:
        self._lanes: Sequence[Lane] = [FakeLane(self) for _ in range(lanes)] or [self]
        self.gains_from_batches = not lanes
        self.config = ModelConfig(name="fake", version="1", search=SearchConfig(beam_size=3, max_length=20))
        self.vocabulary = Vocabulary((*SPECIAL, *WORDS))
        self.card = {"data": "none", "metrics": {"bleu4": 0.0}}
        self.on_batch = on_batch
        self.batches: list[int] = []
        self.threads: set[int] = set()

    @property
    def lanes(self) -> Sequence[Lane]:
        return self._lanes

    def warm_up(self, batch_sizes: Sequence[int] | None = None) -> None:
        """Nothing to warm."""

    def encode(self, pixels: NDArray[np.uint8]) -> FakeRegions:
        self.threads.add(threading.get_ident())
        self.batches.append(len(pixels))
        self.on_batch("encode", len(pixels))
        colours = np.rint(pixels.reshape(len(pixels), -1, 3).mean(axis=1)).astype(np.int64)
        if any(close(colour, POISON) for colour in colours):
            raise RuntimeError("poisoned")
        return FakeRegions(colours)

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, FakeRegions)
        self.threads.add(threading.get_ident())
        search_config = search_config or self.config.search
        self.on_batch("generate", len(regions))
        return [[describe(colour, rank, search_config, explain) for rank in range(search_config.num_captions)]
                for colour in regions.colours]  # fmt: skip


class FakeGuard(Guard):
    """Decodes in a thread of this process."""

    async def start(self) -> None:
        images.limit_pixels(self.max_pixels)
        self.ready = True

    async def stop(self) -> None:
        self.ready = False

    async def read(self, data: bytes) -> Decoded:
        return await asyncio.to_thread(self._decode, data)

    def _decode(self, data: bytes) -> Decoded:
        try:
            picture = images.read(data, self.max_pixels, self.preprocess.size)
        except ImageError as error:
            raise of_image(error) from error
        pixels = to_pixels(picture.image, self.preprocess)
        bare = is_decorative(pixels, picture.width, picture.height)
        return Decoded(pixels, picture.width, picture.height, picture.format, 0.001, bare)


def close(colour: NDArray[np.int64], other: tuple[int, int, int]) -> bool:
    """Whether two colours are equal up to what lossy formats change."""
    return bool(np.abs(colour - np.asarray(other)).max() <= 4)


def describe(colour: NDArray[np.int64], rank: int, search_config: SearchConfig, explain: bool) -> Caption:
    """The caption of a mean colour: each channel in steps of 16 chooses a word."""
    words = [WORDS[int(c) // 16] for c in colour] + [f"{search_config.strategy}{search_config.beam_size}", str(rank)]
    words = words[: search_config.max_length]
    tokens = tuple(Token(word, 0.9 - 0.1 * rank) for word in (*words, "."))
    if explain:
        grid = np.full((7, 7), 1 / 50, np.float32)
        layer = {"forget": 0.9, "input": 0.4, "output": 0.5, "candidate": 0.3, "state": 1.2, "hidden": 0.4}
        why = Explanation(grid, 1 / 50, (layer, layer), (Alternative("thing", 0.05), Alternative(".", 0.01)))
        tokens = tuple(replace(token, explanation=why) for token in tokens)
    log_probability = sum(math.log(token.probability) for token in tokens)
    return Caption(" ".join(words).capitalize() + ".", log_probability, tokens)


def create_app():  # type: ignore[no-untyped-def]  # FastAPI's own type would be imported for this alone
    """The application around a fake engine, for live servers; FAKE_SECONDS slows every batch down."""
    from app.main import create_app

    seconds = float(os.environ.get("FAKE_SECONDS", "0"))
    return create_app(engine=FakeEngine(lambda stage, size: time.sleep(seconds if stage == "encode" else 0)))
