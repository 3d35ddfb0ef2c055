from __future__ import annotations

import json
import pickletools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.captioner import Captioner
from model.checkpoint import (
    CONFIG,
    GRAPH_CONSTANTS,
    METRICS,
    WEIGHTS,
    load_captioner,
    open_checkpoint,
    save_captioner,
)
from model.errors import CheckpointError
from model.runtime import load_engine
from model.vocabulary import SPECIAL, Vocabulary
from tests.model.tiny import captioner, pictures


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / CONFIG).read_text())
    change(content)
    (folder / CONFIG).write_text(json.dumps(content))


def test_everything_comes_back(tmp_path: Path) -> None:
    tiny = captioner()
    tiny.vocabulary = Vocabulary(tiny.vocabulary.words, {"dog": "Dog"})
    save_captioner(tiny, tmp_path / "new", {"figures": {"cider": 12.5}})
    opened = open_checkpoint(tmp_path / "new")
    assert opened.config == tiny.config
    assert opened.vocabulary.words == tiny.vocabulary.words
    assert opened.vocabulary.capitals == {"dog": "Dog"}
    assert opened.metrics == {"figures": {"cider": 12.5}}
    loaded = load_captioner(tmp_path / "new")
    assert not loaded.training
    for name, value in tiny.state_dict().items():
        expected = value.half().float() if value.ndim > 1 else value
        torch.testing.assert_close(loaded.state_dict()[name], expected, atol=0, rtol=0, msg=name)
    pixels = torch.from_numpy(pictures(2))
    words = torch.randint(4, len(tiny.vocabulary), (2, 1, 5))
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels, words), tiny(pixels, words), atol=0.3, rtol=0)


def test_saving_what_was_loaded_changes_nothing(folder: Path) -> None:
    before = load_file(folder / WEIGHTS)
    save_captioner(load_captioner(folder), folder, {})
    after = load_file(folder / WEIGHTS)
    assert before.keys() - {GRAPH_CONSTANTS} == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_a_checkpoint_from_before_a_switch_existed_is_what_it_was(folder: Path) -> None:
    before = load_captioner(folder)
    edit(folder, lambda content: content["model"]["decoder"].pop("layers"))
    assert open_checkpoint(folder).config == before.config
    after = load_captioner(folder).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.state_dict().items())


def test_there_is_no_pickle_in_it(checkpoint: Path) -> None:
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert {CONFIG, METRICS, WEIGHTS} <= names
    for name in names:
        assert Path(name).suffix in {".json", ".safetensors", ".xml", ".bin", ".md"}
        with pytest.raises(ValueError, match=r"."):
            list(pickletools.genops((checkpoint / name).read_bytes()[:4096]))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, METRICS])
def test_every_user_may_read_it(name: str, checkpoint: Path) -> None:
    assert (checkpoint / name).stat().st_mode & 0o444 == 0o444


def refused(folder: Path, message: str) -> None:
    """Neither torch nor OpenVINO reads it, and both say what to do."""
    with pytest.raises(CheckpointError, match=message):
        load_captioner(folder)
    with pytest.raises(CheckpointError, match=message):
        load_engine(folder, engine="openvino")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", r"no checkpoint folder at .*nowhere; train one with scripts/train, or fix the path")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is no checkpoint: it has no config.json")


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_an_unknown_version_is_refused(version: object, folder: Path) -> None:
    edit(folder, lambda content: content.update(format_version=version))
    refused(folder, "format version .*, this program reads 1; use the program version that wrote it")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00" * 40, '{"format_version": 1}'])
def test_a_damaged_config_is_refused(text: str, folder: Path) -> None:
    (folder / CONFIG).write_text(text)
    refused(folder, r"config.json (is damaged .*copy the checkpoint again|has format version None)")


def test_any_cut_of_the_config_is_refused(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    for end in np.linspace(0, len(text) - 3, 25).astype(int):
        (folder / CONFIG).write_text(text[:end])
        with pytest.raises(CheckpointError, match="copy the checkpoint again"):
            open_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"].update(colour="red"),
        lambda c: c["model"]["decoder"].update(hidden_size="wide"),
        lambda c: c["model"]["decoder"].update(cell="lsmt"),
        lambda c: c["model"]["search"].update(beam_size=0),
        lambda c: c.update(model=[1]),
        lambda c: c.update(vocabulary=None),
        lambda c: c.update(vocabulary=[*SPECIAL, 5, 6]),
        lambda c: c.update(vocabulary=["a", *c["vocabulary"]]),
        lambda c: c.update(capitals=[1]),
        lambda c: c.update(capitals={"dog": "Cat"}),
        lambda c: c.update(files=[1]),
        lambda c: c.pop("vocabulary_fingerprint"),
    ],
)
def test_a_config_with_wrong_values_is_refused(change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    edit(folder, change)
    refused(folder, r"config.json is damaged \(.+\); copy the checkpoint again")


def test_a_changed_vocabulary_is_refused(folder: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        words = content["vocabulary"]
        words[5], words[6] = words[6], words[5]

    edit(folder, swap)
    refused(folder, "the vocabulary is not the one the weights were trained with")


def test_weights_of_another_vocabulary_are_refused(folder: Path, tmp_path: Path) -> None:
    """Even where the config is consistent in itself: the weights know their vocabulary."""
    tiny = captioner()
    words = list(tiny.vocabulary.words)
    words[-1] = "lake"
    other = Captioner(tiny.config, Vocabulary(words))
    other.load_state_dict(tiny.state_dict())
    save_captioner(other, tmp_path / "other", {})
    shutil.copy(folder / WEIGHTS, tmp_path / "other" / WEIGHTS)
    content = json.loads((folder / CONFIG).read_text())
    edit(tmp_path / "other", lambda c: c.update(files=content["files"]))
    with pytest.raises(CheckpointError, match=r"trained with another vocabulary than config\.json holds"):
        load_captioner(tmp_path / "other")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_weights_are_refused(share: float, folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged .*copy the whole folder"):
        load_captioner(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "graphs/step-int8.bin", "graphs/encoder.xml"])
def test_one_flipped_bit_is_refused(name: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged .*copy the whole folder"):
        load_captioner(folder) if name == WEIGHTS else load_engine(folder, engine="openvino")


@pytest.mark.parametrize("name", [WEIGHTS, "graphs/step-int8.bin", "graphs/encoder.xml"])
def test_a_missing_file_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"is missing; copy the whole checkpoint folder, or export it again"):
        load_captioner(folder) if name == WEIGHTS else load_engine(folder, engine="openvino")


def test_weights_that_do_not_fit_the_sizes_are_refused(folder: Path) -> None:
    edit(folder, lambda content: content["model"]["decoder"].update(hidden_size=64))
    with pytest.raises(CheckpointError, match=r"does not fit config\.json"):
        load_captioner(folder)


def test_graphs_of_older_weights_are_refused(folder: Path) -> None:
    """Training goes on after an export: the graphs must be made again, not quietly used."""
    newer = captioner(seed=1)
    save_captioner(newer, folder, {})
    with pytest.raises(CheckpointError, match=r"graphs/.* is damaged or of another checkpoint; .*export it again"):
        load_engine(folder, engine="openvino")


def test_damaged_figures_are_refused_and_missing_ones_are_none(folder: Path) -> None:
    (folder / METRICS).write_text("{")
    with pytest.raises(CheckpointError, match=r"metrics.json is damaged .*copy the checkpoint again"):
        open_checkpoint(folder)
    (folder / METRICS).unlink()
    assert open_checkpoint(folder).metrics == {}


def test_what_float16_cannot_hold_is_not_written(tmp_path: Path) -> None:
    tiny = captioner()
    with torch.no_grad():
        tiny.decoder.output.weight[3, 3] = 1e6
    with pytest.raises(CheckpointError, match=r"decoder\.output\.weight .*nothing was written"):
        save_captioner(tiny, tmp_path / "new", {})
    assert not list((tmp_path / "new").iterdir())


def test_other_files_of_tensors_are_not_taken_for_weights(folder: Path) -> None:
    save_file({"x": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="of another checkpoint"):
        load_captioner(folder)
