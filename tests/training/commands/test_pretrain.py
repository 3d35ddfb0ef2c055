from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from tests.training import tiny
from training.commands.pretrain import main
from training.data import CaptionData


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"))


SENTENCES = [f"a {colour} {animal} {verb} on the {place}"
             for colour in ("purple", "grey") for animal in ("horse", "cow", "hen") for verb in ("stands", "lies")
             for place in ("meadow", "roof")]  # fmt: skip


def test_the_command_leaves_out_what_validation_says(
    data: CaptionData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'encoder_weights = "none"\nmin_count = 1\n[model.preprocess]\nsize = 32\n[model.encoder]\n'
        f'name = "{tiny.ENCODER}"\n[model.decoder]\nembed_size = 8\nhidden_size = 8\n'
        '[train]\nepochs = 1\nprecision = "fp32"\n'
    )
    held_out = data.split("val")[0].captions[0]
    text = tmp_path / "text.jsonl.gz"
    with gzip.open(text, "wt") as file:
        file.write("".join(json.dumps({"captions": [s, f"{held_out}."]}) + "\n" for s in SENTENCES))
    folder = Path(data.pictures[0].source)
    arguments = ["--recipe", str(recipe), "--data", str(tmp_path / folder), "--text", str(text)]
    tiny.shapes(tmp_path)
    with caplog.at_level(logging.INFO, "training"):
        assert main([*arguments, "--run", str(tmp_path / "run")]) == 0
    assert "24 sentences without pictures" in caplog.text
    assert main([*arguments[:-1], str(tmp_path / "none.jsonl"), "--run", str(tmp_path / "other")]) == 1
