"""Two processes of torchrun do what one does, to rounding; real processes, a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests.training import tiny
from tests.training.shapes import write_shapes
from training import distributed
from training.batching import CaptionSource
from training.commands.train import main
from training.config import AugmentConfig, TrainConfig
from training.features import Features

ROOT = Path(__file__).parents[2]
RECIPE = """
encoder_weights = "none"
min_count = 1
[model.preprocess]
size = 32
[model.decoder]
embed_size = 8
hidden_size = 16
dropout = 0.0
[model.search]
beam_size = 2
max_length = 9
[train]
epochs = {epochs}
batch_size = {batch}
captions_per_picture = 2
learning_rate = 1e-2
warmup = 2
precision = "fp32"
average = 0.9
save_every = -1.0
"""


CIDER = 'objective = "cider"\ncandidates = "beam"\nsamples = 2\nlikelihood_weight = 0.5\n'


def arguments(folder: Path, run: str, processes: int, more: str = "", epochs: int = 2) -> list[str]:
    """A run on `processes` in `folder / run`: batches of 8 in all, whoever has them."""
    recipe = folder / f"{run}.toml"
    recipe.write_text(RECIPE.format(epochs=epochs, batch=8 // processes) + more)
    given = ["--recipe", str(recipe), "--data", str(folder / "shapes"), "--device", "cpu"]
    given += ["--run", str(folder / run), "--cache", str(folder / f"cache-{processes}")]
    return [*given, "--init", str(folder / "two" / "best")] if more else given


def start(module: str, *given: str) -> subprocess.Popen[str]:
    """Two processes of torchrun."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--"]
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun, module, *given],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of two processes: one is killed, and goes on with the others, which share a start."""
    made = tmp_path_factory.mktemp("distributed")
    write_shapes(made / "shapes", train=22, val=10, test=4, size=32)
    killed = arguments(made, "killed", 2, epochs=6)
    kill_one(start("training.commands.train", *killed), made / "killed")
    shutil.copytree(made / "killed", made / "as-killed")
    runs = [arguments(made, "two", 2), arguments(made, "two-cider", 2, CIDER, epochs=1),
            arguments(made, "whole", 2, epochs=6), killed]  # fmt: skip
    (made / "runs.json").write_text(json.dumps(runs))
    process = start("tests.training.several", str(made / "runs.json"))
    said, _ = process.communicate()
    assert process.returncode == 0, said[-3000:]
    return made


def kill_one(process: subprocess.Popen[str], run: Path) -> None:
    """Kill one of the two when they have saved for the first time; the other then ends too."""
    while not (run / "state.pt").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    children = [
        c for c in psutil.Process(process.pid).children(recursive=True) if "training.commands.train" in c.cmdline()
    ]
    os.kill(max(children, key=lambda child: child.create_time()).pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode != 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "state.pt", weights_only=True)["model"]
    return state


def history(folder: Path) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    return made


def assert_alike(one: Path, two: Path) -> None:
    for mine, theirs in zip(history(one), history(two), strict=True):
        for key in ("train_loss", "val_loss", "gradient_norm"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3), key
    a, b = weights(one), weights(two)
    for name in a:
        if a[name].is_floating_point():
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_two_processes_learn_what_one_does(folder: Path) -> None:
    assert main(arguments(folder, "one", 1)) == 0
    assert_alike(folder / "one", folder / "two")
    assert (folder / "two" / "best" / "config.json").is_file()


def test_so_do_they_by_rewards(folder: Path) -> None:
    assert main(arguments(folder, "one-cider", 1, CIDER, epochs=1)) == 0
    assert_alike(folder / "one-cider", folder / "two-cider")


def test_a_run_goes_on_after_a_process_was_killed(folder: Path) -> None:
    whole, killed, then = folder / "whole", folder / "killed", folder / "as-killed"
    assert len(history(then)) < 6 if (then / "history.json").is_file() else True
    assert history(killed) == history(whole)
    expected = weights(whole)
    for name, value in weights(killed).items():
        assert torch.equal(value, expected[name]), name


def test_a_run_of_two_does_not_go_on_as_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "two", 1)) == 1
    assert "processes" in capsys.readouterr().err


# --- how batches are dealt out -------------------------------------------------------------------


def dealt(folder: Path, patch: pytest.MonkeyPatch, processes: int, batch: int, pictures: int) -> list[list[int]]:
    """Of an epoch's batches the pictures in them, all processes' together; each must have some."""
    data = tiny.shapes(folder, train=pictures)
    captioner = tiny.captioner(data)
    cached = Features(
        np.zeros((pictures, 1, 4), np.float16), np.zeros((pictures, 1), bool), tuple(data.split("train")), (), 1
    )
    config = TrainConfig(batch_size=batch, captions_per_picture=2)
    batches: list[list[int]] = []
    patch.setattr(distributed, "world_size", lambda: processes)
    for rank in range(processes):
        patch.setattr(distributed, "rank", lambda rank=rank: rank)
        made = CaptionSource(cached, captioner, config, AugmentConfig())
        mine = list(made.batches(0, tiny.CPU))
        assert len(mine) == len(made)
        assert all(batch.rows for batch in mine)
        batches = batches or [[] for _ in mine]
        for i, one in enumerate(mine):
            batches[i] += one.rows
    return batches


@pytest.mark.parametrize("pictures", [16, 17, 18, 22])
def test_each_picture_falls_to_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: int) -> None:
    for processes, batch in ((1, 8), (2, 4)):
        batches = dealt(tmp_path / str(processes), monkeypatch, processes, batch, pictures)
        assert sorted(row for rows in batches for row in rows) == list(range(pictures))
