"""Training in minutes, proved on the CPU: changes of whole batches, a run by the clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoint import WEIGHTS, load_captioner
from model.vocabulary import END, START
from tests.training import tiny
from training import gpu
from training.augment import AugmentConfig
from training.config import TrainConfig
from training.data import CaptionData
from training.parts import CHECKPOINT, join

ROOT = Path(__file__).parents[2]
SIZE = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"), val=10)


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
    tiny.packed(data, parts)
    figures = gpu.train(parts, out, tiny.CPU, minutes=0.1, batch=8)
    assert figures["steps"] >= 1
    assert figures["val_cider"].keys() == {"shapes"}
    assert not (out / WEIGHTS).exists()
    joined = load_captioner(join(out, tmp_path / "joined"))
    begun = load_captioner(parts / CHECKPOINT)
    assert joined.vocabulary.words == begun.vocabulary.words
    if figures["steps"] > 1:  # the first has no learning rate yet
        changed = [
            n for n, v in joined.decoder.state_dict().items() if not torch.equal(v, begun.decoder.state_dict()[n])
        ]
        assert changed
    assert json.loads((tmp_path / "joined" / "metrics.json").read_text())["steps"] == figures["steps"]


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
