from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import WEIGHTS
from model.errors import CheckpointError
from tests.training import tiny
from training.data import CaptionData, DataError
from training.parts import CHECKPOINT, join, split, unpack


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"), val=10)


def test_parts_hold_all_pictures_and_are_not_made_twice(data: CaptionData, tmp_path: Path) -> None:
    count = tiny.packed(data, tmp_path)
    parts = sorted(tmp_path.glob("part-*.tar"))
    assert len(parts) == count > 1
    assert all(path.stat().st_size <= 100_000 for path in parts)
    times = {path: path.stat().st_mtime_ns for path in parts}
    lost = parts[1]
    lost.unlink()
    assert tiny.packed(data, tmp_path) == count
    assert {path: path.stat().st_mtime_ns for path in parts if path != lost} == {
        p: times[p] for p in parts if p != lost
    }
    there = unpack(tmp_path, tiny.CPU)
    wanted = data.required("train") + data.split("val")
    assert [(p.captions, p.split) for p in there.pictures] == [(p.captions, p.split) for p in wanted]
    assert there.pixels.dtype == torch.uint8
    shown = np.asarray(wanted[3].open().convert("RGB").resize((8, 8))).astype(int)
    kept = torch.nn.functional.interpolate(there.pixels[3].permute(2, 0, 1)[None].float(), 8, mode="area")
    assert np.abs(kept[0].permute(1, 2, 0).numpy() - shown).mean() < 25


def test_what_is_there_is_trained_on(data: CaptionData, tmp_path: Path) -> None:
    tiny.packed(data, tmp_path)
    sorted(tmp_path.glob("part-*.tar"))[-1].unlink()
    assert 0 < len(unpack(tmp_path, tiny.CPU).pictures) < 32
    for path in tmp_path.glob("part-*.tar"):
        path.unlink()
    with pytest.raises(DataError, match="no part"):
        unpack(tmp_path, tiny.CPU)


def test_parts_of_others_are_left_alone(data: CaptionData, tmp_path: Path) -> None:
    tiny.packed(data, tmp_path)
    with pytest.raises(DataError, match="other pictures"):
        tiny.packed(data, tmp_path, part_bytes=200_000)


def test_pieces_have_their_size_and_a_missing_one_is_noticed(data: CaptionData, tmp_path: Path) -> None:
    tiny.packed(data, tmp_path / "parts")
    start = tmp_path / "parts" / CHECKPOINT
    whole = (start / WEIGHTS).read_bytes()
    count = split(start, 100_000)
    pieces = sorted(start.glob(f"{WEIGHTS}.*"))
    assert len(pieces) == count > 1
    assert all(piece.stat().st_size <= 100_000 for piece in pieces)
    assert (join(start, tmp_path / "joined") / WEIGHTS).read_bytes() == whole
    pieces[-1].unlink()
    with pytest.raises(CheckpointError):
        join(start, tmp_path / "again")
