from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.captioner import Captioner
from model.checkpoint import save_captioner
from model.config import DecoderConfig, ModelConfig, PreprocessConfig
from model.vocabulary import Vocabulary
from tests.training.shapes import write_shapes
from training.commands.evaluate import main
from training.data import read


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=30, val=12, test=3, size=32)


@pytest.fixture(scope="module")
def checkpoint(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vocabulary = Vocabulary.build((c for p in read(shapes).split("train") for c in p.captions), 1)
    sizes = DecoderConfig(embed_size=16, hidden_size=16)
    config = ModelConfig(name="small", version="7", preprocess=PreprocessConfig(size=32), decoder=sizes)
    config = replace(config, search=replace(config.search, max_length=8))
    folder = tmp_path_factory.mktemp("model")
    save_captioner(Captioner(config, vocabulary), folder, {})
    return folder


def test_the_whole_command(checkpoint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, gallery, judged = tmp_path / "metrics.json", tmp_path / "gallery.html", tmp_path / "judged.json"
    judged.write_text(json.dumps({f"dev-{i:04}.png": ["wrong count", "seen by eye"] for i in range(12)}))
    arguments = ["--model", checkpoint, "--engine", "torch", "--device", "cpu", "--data", shapes, "--split", "val"]
    more = ["--beam", 1, 2, "--metrics", metrics, "--gallery", gallery, "--failures", 5, "--judgements", judged]
    assert main([str(argument) for argument in arguments + more]) == 0
    printed = capsys.readouterr().out
    content: dict[str, Any] = json.loads(metrics.read_text())
    figures = content["sets"]["shapes"]
    assert content["model"] == {"name": "small", "version": "7"}
    assert (content["engine"], content["split"], figures["pictures"]) == ("torch", "val", 12)
    assert 0 <= figures["calibration_error"] <= 1
    tried = content["searches_tried"]
    assert [entry["search"]["beam_size"] for entry in tried] == [1, 2]
    assert figures["CIDEr"] == max(entry["CIDEr"] for entry in tried)
    assert content["search"]["beam_size"] == max(tried, key=lambda entry: entry["CIDEr"])["search"]["beam_size"]
    for text in ("small 7, torch on cpu, split val", "length penalty", f"{figures['METEOR']:.2f}", "calibration error"):
        assert text in printed
    html = gallery.read_text(encoding="utf-8")
    assert html.count("<img ") == html.count("seen by eye") == 5
    assert "5 wrong count" in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beam", "1", "2"], "no test any more"),
        (["--model", "nowhere"], "no checkpoint folder at nowhere"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
        (["--beam", "99"], "beam_size must be 1 to"),
        (["--judgements", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    checkpoint: Path, shapes: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ["--engine", "torch", "--device", "cpu"]
    assert main(["--model", str(checkpoint), "--data", str(shapes), *engine, *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_split_without_pictures(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_shapes(tmp_path / "shapes", train=2, val=0, test=0, size=32)
    assert main(["--model", str(checkpoint), "--data", str(data), "--split", "test"]) == 1
    assert "no test pictures in the data; hold some out with PATH:test=N" in capsys.readouterr().err


def test_java_missing_is_said_first(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--model", str(checkpoint), "--data", "nowhere"]) == 1
    assert "needs Java" in capsys.readouterr().err


def test_failures_need_a_gallery(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--data", "x", "--failures", "20"])
    assert "--failures needs --gallery" in capsys.readouterr().err
