from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch

from model.captioner import Captioner
from model.cells import CELLS
from model.checkpoint import CONFIG, GRAPHS, WEIGHTS, load_captioner, open_checkpoint, save_captioner, write_config
from model.decoder import Memory
from model.runtime import load_engine
from model.runtime.openvino_engine import ENCODER, STEP
from model.vocabulary import SPECIAL, Vocabulary
from tests.model.tiny import captioner, pictures
from training.commands.export import main
from training.finishing import export as exporting
from training.finishing.export import ExportError, export, join


@pytest.fixture
def exported(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with its graphs, as an export left it."""
    return Path(shutil.copytree(checkpoint, tmp_path / "exported"))


@pytest.mark.parametrize(
    ("cell", "sentinel", "layers", "heads", "slots"),
    [
        ("rnn", True, 2, 4, 0), ("gru", False, 2, 4, 3), ("lstm-peephole", True, 2, 4, 0), ("lstm", True, 1, 4, 0),
        ("gru", False, 1, 4, 0), ("lstm", False, 2, 0, 0), ("lstm", True, 2, 4, 5),
    ],
)  # fmt: skip
def test_every_decoder_exports_and_steps_like_torch(
    cell: str, sentinel: bool, layers: int, heads: int, slots: int, tmp_path: Path
) -> None:
    """Several steps, with beams that change their parents, in batches the graph was not traced with."""
    assert cell in CELLS
    made = captioner(cell=cell, sentinel=sentinel, layers=layers, attention_heads=heads, tag_slots=slots)
    save_captioner(made, tmp_path / "new", {})
    export(tmp_path / "new")
    tiny = load_captioner(tmp_path / "new")
    rng = np.random.default_rng(0)
    core = ov.Core()
    graphs, weights = tmp_path / "new" / GRAPHS, tmp_path / "new" / WEIGHTS
    read = {name: core.read_model(graphs / f"{name}.xml", weights) for name in (ENCODER, STEP)}
    encoder, step = (core.compile_model(m, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for m in read.values())
    pixels = pictures(3)
    encoded = encoder([pixels])
    with torch.inference_mode():
        memory = tiny.encode(torch.from_numpy(pixels))
        given = {name: encoded[name].copy() for name in (Memory._fields if heads else ("start",))}
        tensors = {name: torch.from_numpy(values) for name, values in given.items()}
        for value, expected in zip(
            join(**tensors) if heads else tensors.values(), memory[-len(tensors) :], strict=True
        ):
            np.testing.assert_allclose(value, expected, atol=0.05)
        memory = join(**tensors) if heads else memory._replace(**tensors)
        given.pop("start")
        state = tiny.decoder.initial_state(memory, 1)
        for beams in (4, 4, 2):
            words = rng.integers(4, len(tiny.vocabulary), (3, beams))
            parents = rng.integers(0, state.shape[1], (3, beams))
            results = step({**given, "words": words, "parents": parents, "state": state.numpy()})
            chosen = state.gather(1, torch.from_numpy(parents)[:, :, None].expand(-1, -1, state.shape[-1]))
            out = tiny.decoder.step(memory, torch.from_numpy(words), chosen)
            expected = tiny.decoder.log_probabilities(out.logits, tiny.config.temperature)
            np.testing.assert_allclose(results["log_probabilities"][..., 4:], expected[..., 4:], atol=0.03)
            np.testing.assert_allclose(results["state_out"], out.state, atol=0.02)
            if heads:
                np.testing.assert_allclose(results["attention"], out.attention, atol=0.01)
            np.testing.assert_allclose(results["gates"], out.gates, atol=0.02)
            state = out.state


def test_the_digests_of_the_graphs_are_recorded(plain: Path, exported: Path) -> None:
    assert [name for name in open_checkpoint(plain).digests if name.startswith(GRAPHS)] == []
    opened = open_checkpoint(exported)
    recorded = {name for name in opened.digests if name.startswith(GRAPHS)}
    assert recorded == {f"{GRAPHS}/{path.name}" for path in (exported / GRAPHS).iterdir()}
    assert {f"{GRAPHS}/encoder.xml", f"{GRAPHS}/step-int8.bin"} <= recorded
    for name in opened.digests:
        opened.verified(name)
    assert not [path for path in exported.iterdir() if path.is_dir() and path.name != GRAPHS]  # nothing temporary left


def test_weights_in_float16_are_stored_once(exported: Path) -> None:
    assert [path.name for path in (exported / GRAPHS).glob("*.bin")] == ["step-int8.bin"]
    weights = (exported / WEIGHTS).read_bytes()
    export(exported)  # what only graphs read is no weight of the captioner, and makes no difference to the next export
    assert (exported / WEIGHTS).read_bytes() == weights


def test_graphs_with_weights_of_their_own_are_read_too(exported: Path) -> None:
    """As an export wrote them before they shared the captioner's."""
    checkpoint, pixels = open_checkpoint(exported), pictures(2)
    engine = load_engine(exported, engine="openvino", precision="f32")
    expected = engine.generate(engine.encode(pixels), engine.config.search)
    for name in (ENCODER, STEP):
        graph = ov.Core().read_model(exported / GRAPHS / f"{name}.xml", exported / WEIGHTS)
        ov.save_model(graph, exported / GRAPHS / f"{name}.xml")
    save_captioner(load_captioner(exported), exported, {})
    write_config(exported, checkpoint.config, checkpoint.vocabulary, graphs=True)
    older = load_engine(exported, engine="openvino", precision="f32")
    assert older.generate(older.encode(pixels), older.config.search) == expected


@pytest.mark.parametrize("output", ["keys", "start", "log_probabilities", "attention"])
def test_graphs_that_compute_something_else_are_not_written(
    output: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One output of the converted graph is off by a tenth; torch's is not."""
    convert = exporting._convert

    class Off(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, outputs: Any) -> None:
            super().__init__()
            self.module, self.outputs = module, outputs

        def forward(self, *inputs: Any) -> Any:
            return tuple(
                value * 1.1 if name == output else value
                for name, value in zip(self.outputs, self.module(*inputs), strict=True)
            )

    def wrong(module: Any, example: Any, inputs: Any, outputs: Any) -> Any:
        return convert(Off(module, outputs) if output in outputs else module, example, inputs, outputs)

    before = (folder / CONFIG).read_text()
    monkeypatch.setattr(exporting, "_convert", wrong)
    with pytest.raises(ExportError, match=rf"output {output} is off torch's by [\d.]+%; nothing was written"):
        export(folder)
    assert not (folder / GRAPHS).exists()
    assert (folder / CONFIG).read_text() == before


def test_a_graph_that_says_forbidden_words_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = exporting._convert

    def wrong(module: Any, *rest: Any) -> Any:
        if isinstance(module, exporting.StepGraph):
            module = exporting.StepGraph(module.decoder, module.temperature)
            monkeypatch.setattr(module.decoder, "log_probabilities", lambda logits, t: (logits / t).log_softmax(-1))
            graph = convert(module, *rest)
            monkeypatch.delattr(module.decoder, "log_probabilities")
            return graph
        return convert(module, *rest)

    monkeypatch.setattr(exporting, "_convert", wrong)
    with pytest.raises(ExportError, match="output log_probabilities forbids other words than torch's"):
        export(folder)


def test_a_model_without_words_is_refused(tmp_path: Path) -> None:
    """Random words to compare the graphs with were drawn from none."""
    save_captioner(Captioner(captioner().config, Vocabulary(SPECIAL)), tmp_path / "new", {})
    with pytest.raises(ExportError, match="the vocabulary holds no word"):
        export(tmp_path / "new")
    assert not (tmp_path / "new" / GRAPHS).exists()


def test_a_failed_export_leaves_the_model_that_stands_there(
    folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Path(shutil.copytree(checkpoint, tmp_path / "served"))
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

    def fails(*_: Any) -> None:
        raise ExportError("off by a mile")

    monkeypatch.setattr(exporting, "_check", fails)
    assert main([str(folder), "--to", str(target)]) == 1
    assert "error: off by a mile" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob("tmp*"))
