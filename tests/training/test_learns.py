from __future__ import annotations

from pathlib import Path

import numpy as np

from model.runtime import load_engine
from tests.training.shapes import write_shapes
from training import export, train
from training.data import read

HELD_OUT = 100  # pictures


def test_from_nothing_to_captions_of_pictures_it_never_saw(tmp_path: Path) -> None:
    """The whole chain: data, training, checkpoint, export, serving engine."""
    data = write_shapes(tmp_path / "shapes", train=3000, val=60, test=HELD_OUT, size=48)
    run = tmp_path / "run"
    assert train.main(
        ["--recipe", "shapes", "--data", str(data), "--run", str(run), "--cache", str(tmp_path / "cache"),
         "--device", "cpu"]
    ) == 0  # fmt: skip
    assert export.main([str(run / "best")]) == 0

    engine = load_engine(run / "best", "cpu", "openvino")
    pictures = read(data).split("test")
    assert len(pictures) == HELD_OUT
    pixels = np.stack([engine.preprocess(picture.open()) for picture in pictures])
    said = [found[0].text for found in engine.caption(pixels)]
    true = [f"{picture.captions[0].capitalize()}." for picture in pictures]
    right = sum(a == b for a, b in zip(said, true, strict=True))
    assert right >= 0.9 * HELD_OUT, [pair for pair in zip(said, true, strict=True) if pair[0] != pair[1]][:10]
