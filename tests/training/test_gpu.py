"""Training in minutes, proved on the CPU: parts, changes of whole batches, a run by the clock, pieces."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import WEIGHTS, load_captioner
from model.errors import CheckpointError
from model.vocabulary import END, START
from tests.training import tiny
from training import gpu
from training.augment import AugmentConfig
from training.config import TrainConfig
from training.data import CaptionData, DataError

ROOT = Path(__file__).parents[2]
SIZE = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"), val=10)


def packed(data: CaptionData, folder: Path, part_bytes: int = 100_000) -> int:
    pictures = data.required("train") + data.split("val")
    recipe = replace(tiny.recipe(), augment=AugmentConfig(flip=True, min_scale=0.6, jitter=0.2))
    return gpu.pack(pictures, recipe, tiny.captioner(data), folder, part_bytes)


# --- parts ---------------------------------------------------------------------------------------


def test_parts_hold_all_pictures_and_are_not_made_twice(data: CaptionData, tmp_path: Path) -> None:
    count = packed(data, tmp_path)
    parts = sorted(tmp_path.glob("part-*.tar"))
    assert len(parts) == count > 1
    assert all(path.stat().st_size <= 100_000 for path in parts)
    times = {path: path.stat().st_mtime_ns for path in parts}
    lost = parts[1]
    lost.unlink()
    assert packed(data, tmp_path) == count
    assert {path: path.stat().st_mtime_ns for path in parts if path != lost} == {
        p: times[p] for p in parts if p != lost
    }
    there = gpu.unpack(tmp_path, tiny.CPU)
    wanted = data.required("train") + data.split("val")
    assert [(p.captions, p.split) for p in there.pictures] == [(p.captions, p.split) for p in wanted]
    assert there.pixels.dtype == torch.uint8
    shown = np.asarray(wanted[3].open().convert("RGB").resize((8, 8))).astype(int)
    kept = torch.nn.functional.interpolate(there.pixels[3].permute(2, 0, 1)[None].float(), 8, mode="area")
    assert np.abs(kept[0].permute(1, 2, 0).numpy() - shown).mean() < 25


def test_what_is_there_is_trained_on(data: CaptionData, tmp_path: Path) -> None:
    packed(data, tmp_path)
    sorted(tmp_path.glob("part-*.tar"))[-1].unlink()
    assert 0 < len(gpu.unpack(tmp_path, tiny.CPU).pictures) < 32
    for path in tmp_path.glob("part-*.tar"):
        path.unlink()
    with pytest.raises(DataError, match="no part"):
        gpu.unpack(tmp_path, tiny.CPU)


def test_parts_of_others_are_left_alone(data: CaptionData, tmp_path: Path) -> None:
    packed(data, tmp_path)
    with pytest.raises(DataError, match="other pictures"):
        packed(data, tmp_path, part_bytes=200_000)


# --- changes -------------------------------------------------------------------------------------


def pictures(count: int = 64, size: int = SIZE) -> torch.Tensor:
    """Redder to the right, greener downwards: what a crop shows says where it was."""
    ramp = torch.linspace(0, 255, size)
    red, green = ramp[None, :].expand(size, size), ramp[:, None].expand(size, size)
    one = torch.stack([red, green, torch.full((size, size), 100.0)], -1)
    return one.to(torch.uint8)[None].repeat(count, 1, 1, 1)


def test_nothing_changes_unless_it_is_asked_for() -> None:
    x = pictures(3)
    y, flipped = gpu.augmented(x, SIZE, AugmentConfig(), torch.ones(3, dtype=torch.bool))
    assert not flipped.any()
    torch.testing.assert_close(y, x.float(), atol=1e-3, rtol=0)


def test_some_are_mirrored_of_those_that_may_be() -> None:
    x, may = pictures(), torch.arange(64) < 32
    torch.manual_seed(0)
    y, flipped = gpu.augmented(x, SIZE, AugmentConfig(flip=True), may)
    assert 0 < flipped.sum() < 32
    assert not flipped[32:].any()
    torch.testing.assert_close(y[flipped], x[flipped].flip(2).float(), atol=1e-2, rtol=0)
    torch.testing.assert_close(y[~flipped], x[~flipped].float(), atol=1e-2, rtol=0)


def test_crops_are_as_large_as_they_may_be_and_lie_within() -> None:
    torch.manual_seed(0)
    y, _ = gpu.augmented(pictures(256), SIZE, AugmentConfig(min_scale=0.5), torch.zeros(256, dtype=torch.bool))
    red, green = y[..., 0], y[..., 1]
    width = (red[:, 0, -1] - red[:, 0, 0]) / 255
    height = (green[:, -1, 0] - green[:, 0, 0]) / 255
    area = width * height
    assert 0.35 < float(area.min()) < 0.6
    assert float(area.max()) > 0.85
    assert float(red[:, 0, 0].min()) < 10
    assert float(red[:, 0, -1].max()) > 245
    assert float(red[:, 0, 0].max()) > 40  # not always from the left


def test_light_and_colours_vary_within_their_range() -> None:
    torch.manual_seed(0)
    grey = torch.full((64, SIZE, SIZE, 3), 100, dtype=torch.uint8)
    y, _ = gpu.augmented(grey, SIZE, AugmentConfig(jitter=0.3), torch.zeros(64, dtype=torch.bool))
    assert float(y.min()) >= 69.9
    assert float(y.max()) <= 130.1
    assert float(y.flatten(1).mean(1).std()) > 5


def test_captions_are_drawn_from_the_pictures_own() -> None:
    ids = [[[5, 6], [7]], [[8, 9, 10]], [[11], [12], [13]]]
    made = gpu.Sentences(ids, TrainConfig(), tiny.CPU)
    drawn = made.drawn(torch.tensor([0, 1, 2]), 4).tolist()
    said = [[tuple(i for i in words if i > END or i in (START, END)) for words in mine] for mine in drawn]
    own = [{(START, *caption, END) for caption in mine} for mine in ids]
    assert [set(mine) for mine in said] == own  # with four draws each has all of its own


# --- a run ---------------------------------------------------------------------------------------


def test_a_minutes_budget_on_the_cpu_leaves_pieces_of_a_checkpoint(data: CaptionData, tmp_path: Path) -> None:
    parts, out = tmp_path / "parts", tmp_path / "out"
    packed(data, parts)
    figures = gpu.train(parts, out, tiny.CPU, minutes=0.1, batch=8)
    assert figures["steps"] >= 1
    assert figures["val_cider"].keys() == {"shapes"}
    assert not (out / WEIGHTS).exists()
    joined = load_captioner(gpu.join(out, tmp_path / "joined"))
    begun = load_captioner(parts / gpu.START)
    assert joined.vocabulary.words == begun.vocabulary.words
    if figures["steps"] > 1:  # the first has no learning rate yet
        changed = [
            n for n, v in joined.decoder.state_dict().items() if not torch.equal(v, begun.decoder.state_dict()[n])
        ]
        assert changed
    assert json.loads((tmp_path / "joined" / "metrics.json").read_text())["steps"] == figures["steps"]


def test_pieces_have_their_size_and_a_missing_one_is_noticed(data: CaptionData, tmp_path: Path) -> None:
    packed(data, tmp_path / "parts")
    start = tmp_path / "parts" / gpu.START
    whole = (start / WEIGHTS).read_bytes()
    count = gpu.split(start, 100_000)
    pieces = sorted(start.glob(f"{WEIGHTS}.*"))
    assert len(pieces) == count > 1
    assert all(piece.stat().st_size <= 100_000 for piece in pieces)
    assert (gpu.join(start, tmp_path / "joined") / WEIGHTS).read_bytes() == whole
    pieces[-1].unlink()
    with pytest.raises(CheckpointError):
        gpu.join(start, tmp_path / "again")


def test_training_there_needs_only_small_packages() -> None:
    # tensorboard, OpenVINO, torchvision and matplotlib are not on such a machine, and large.
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'tensorboard', 'openvino', 'matplotlib', 'pyarrow', 'nncf'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import training.gpu\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
