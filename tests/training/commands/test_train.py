from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint import open_checkpoint
from tests.training import tiny
from training.commands.train import main
from training.data import CaptionData
from training.validation import FEWEST


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"), val=FEWEST)


@pytest.fixture
def folder(data: CaptionData) -> str:
    return str(data.pictures[0].path.parent.parent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nonesuch", "--data", "{folder}"], "error: no recipe at nonesuch"),
        (["--recipe", "{tmp}/wrong.toml", "--data", "{folder}"], "error: unknown key 'epoch'"),
        (["--recipe", "flickr8k", "--data", "{tmp}/nowhere"], "nowhere: no such file or folder"),
        (["--recipe", "flickr8k", "--data", "{tmp}"], "found no captions. Looked for: "),
        (["--recipe", "{tmp}/odd.toml", "--data", "{folder}"], "error: unknown encoder 'vgg99'"),
        (["--recipe", "{tmp}/file.toml", "--data", "{folder}"], "error: no encoder weights at nowhere.pth"),
        (["--recipe", "flickr8k", "--data", "{folder}", "--init", "{tmp}/none"], "error: no checkpoint folder at"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    arguments: list[str], message: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.toml").write_text("epoch = 3")
    (tmp_path / "odd.toml").write_text("[model.encoder]\nname = 'vgg99'")
    (tmp_path / "file.toml").write_text("encoder_weights = 'nowhere.pth'")
    given = [a.format(folder=folder, tmp=tmp_path) for a in arguments]
    assert main([*given, "--run", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_command_line_trains(folder: str, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text("""
encoder_weights = "none"
min_count = 1
[model]
name = "small"
preprocess.size = 32
encoder.name = "resnet18"
decoder.embed_size = 8
decoder.hidden_size = 16
search.max_length = 8
[train]
epochs = 1
precision = "fp32"
""")
    arguments = ["--recipe", str(recipe), "--data", folder, "--run", str(tmp_path / "run"), "--seed", "7"]
    assert main([*arguments, "--cache", str(tmp_path / "cache"), "--device", "cpu"]) == 0
    opened = open_checkpoint(tmp_path / "run" / "best")
    assert opened.config.name == "small"
    assert opened.config.preprocess.mean == pytest.approx((123.675, 116.28, 103.53))  # resnet's own
    assert opened.metrics["recipe"]["train"]["seed"] == 7
    assert opened.metrics["recipe"]["model"]["preprocess"]["mean"] == list(opened.config.preprocess.mean)  # as it ran
