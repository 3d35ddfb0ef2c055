"""Captions with the model in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from app import local
from app.schemas import CaptionParams
from tests.app.fakes import FakeEngine
from tests.pictures import plain

COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (120, 120, 20)]


def read(name: str) -> bytes:
    return Path(name).read_bytes()


def test_many_pictures_are_read_only_a_little_ahead(engine: FakeEngine, tmp_path: Path) -> None:
    """Constant memory: however many pictures there are, few are open, and the engine gets whole batches."""
    path = tmp_path / "a.png"
    path.write_bytes(plain(COLOURS[0]))
    taken = 0

    def names() -> Iterator[str]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield str(path)

    outcomes = local.outcomes(names(), read, engine, engine.config.search, CaptionParams(), 10**6)
    for done, _ in enumerate(itertools.islice(outcomes, 500), 1):
        assert taken - done < 4 * local.BATCH
    outcomes.close()  # type: ignore[attr-defined]
    assert set(engine.batches) == {local.BATCH}
    assert taken < 600


def test_an_oriented_picture_keeps_its_size_in_the_answer(engine: FakeEngine, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    [outcome] = local.outcomes([str(path)], read, engine, engine.config.search, CaptionParams(), 10**6)
    assert outcome.image is not None
    assert (outcome.image.width, outcome.image.height) == (20, 30)
