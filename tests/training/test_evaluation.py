from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model.caption import Caption, Token
from model.config import ModelConfig, PreprocessConfig, SearchConfig
from model.runtime.engine import CaptionEngine, Regions
from training.data import Picture
from training.evaluation import caption_pictures


class Colours(Regions):
    """Mean colours in place of features."""

    def __init__(self, colours: np.ndarray) -> None:
        self.colours = colours

    def __len__(self) -> int:
        return len(self.colours)

    def select(self, rows: Sequence[int]) -> Colours:
        return Colours(self.colours[list(rows)])

    @classmethod
    def join(cls, parts: Sequence[Colours]) -> Colours:
        return cls(np.concatenate([part.colours for part in parts]))


class FakeEngine(CaptionEngine):
    """Names the mean colour and the beam."""

    name, device, card = "fake", "cpu", {}
    config = ModelConfig(preprocess=PreprocessConfig(size=8))
    encoded = 0

    def encode(self, pixels: np.ndarray) -> Colours:
        assert pixels.shape[1:] == (8, 8, 3)
        self.encoded += len(pixels)
        return Colours(pixels.mean((1, 2)).round())

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, Colours)
        assert search_config
        texts = [f"{red:.0f} beam {search_config.beam_size}." for red in regions.colours[:, 0]]
        return [[Caption(text, -1.0, (Token("x", 0.5),))] for text in texts]


def test_pictures_keep_their_captions_where_some_are_broken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from PIL import Image

    pictures = []
    for i in range(11):
        file = tmp_path / f"{i}.png"
        Image.new("RGB", (9, 9), (i, 0, 0)).save(file)
        if i in (0, 4, 5):
            file.write_bytes(b"broken")
        pictures.append(Picture(file.name, ("x",), "test", "s", file, 0, file.stat().st_size))
    engine = FakeEngine()
    searches = [SearchConfig(beam_size=1), SearchConfig(beam_size=4)]
    sound, captions = caption_pictures(engine, pictures, searches, batch_size=2)
    numbers = [i for i in range(11) if i not in (0, 4, 5)]
    assert [picture.name for picture in sound] == [f"{i}.png" for i in numbers]
    assert [[c.text for c in mine] for mine in captions] == [[f"{i} beam {b}." for i in numbers] for b in (1, 4)]
    assert engine.encoded == len(numbers)  # once for both searches
    assert caplog.text.count("skipped") == 3
