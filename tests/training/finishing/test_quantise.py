from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from torch import Tensor

from model.captioner import Captioner, Seen, TagHead
from model.checkpoint import GRAPHS, WEIGHTS, load_captioner, save_captioner
from model.config import EncoderConfig
from model.encoder import build, fold_norms
from model.runtime import load_engine
from model.runtime.openvino_engine import ENCODER, ENCODER_INT8
from tests.model.tiny import captioner, pictures
from tests.training import tiny
from training.finishing import quantise
from training.finishing.export import export
from training.finishing.quantise import RoundedActivation, RoundedWeight, calibrate, rounded


@pytest.fixture(scope="module")
def original() -> Captioner:
    """A captioner with tags; not to be changed."""
    made = captioner(imagenet=True)
    torch.manual_seed(3)
    made.config = replace(made.config, tags=("dog", "cat", "man", "woman", "ball"))
    made.tags = TagHead(made.encoder.channels, 5)
    fold_norms(made.encoder)
    return made.eval()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return [torch.from_numpy(pictures(32, seed=seed)) for seed in (1, 2)]


@torch.inference_mode()
def see(captioner: Captioner, pixels: Tensor) -> Seen:
    return captioner.see(pixels)


def error(found: Seen, wanted: Seen) -> float:
    """Of keys, relative to how much they differ between pictures."""
    mine, theirs = found.memory.keys, wanted.memory.keys
    return float((mine - theirs).square().mean() / (theirs - theirs.mean(0)).square().mean())


def test_a_weight_is_one_of_255_multiples_of_its_channels_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2) * torch.tensor([0.01, 1, 5, 100.0])[:, None, None, None]
    steps = weight.flatten(1).abs().amax(1) / 127
    levels = RoundedWeight()(weight) / steps[:, None, None, None]
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert levels.flatten(1).abs().amax(1).tolist() == pytest.approx([127] * 4, abs=1e-3)
    assert float((levels * steps[:, None, None, None] - weight).abs().max()) <= float(steps.max()) / 2 * 1.01


@pytest.mark.parametrize(("signed", "expected"), [(True, [-4, -2, 0, 1, 3.96875]), (False, [0, 0, 0, 1.00392, 4])])
def test_an_activation_is_cut_at_its_range_and_rounded(signed: bool, expected: list[float]) -> None:
    found = RoundedActivation(signed, 4 if not signed else 4 * 127 / 128)(torch.tensor([-9, -2, 0.001, 1, 9]))
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_range_leaves_out_the_few_that_would_coarsen_the_rest() -> None:
    torch.manual_seed(0)
    activation = RoundedActivation(signed=True)
    activation.samples = []
    activation(torch.cat([torch.randn(100_000), torch.tensor([400.0])]))
    assert activation.largest == 400
    activation.fit()
    assert activation.largest < 200
    even = RoundedActivation(signed=False)
    even.samples = []
    even(torch.rand(100_000))
    even.fit()
    assert even.largest == pytest.approx(1, abs=0.02)


def test_outside_of_it_all_is_as_before(original: Captioner, batches: list[Tensor]) -> None:
    changed = copy.deepcopy(original)
    before, names = see(changed, batches[0]), set(changed.state_dict())
    with rounded(changed) as activations:
        see(changed, batches[0])
        for activation in activations:
            activation.fit()
    with rounded(changed, [activation.largest for activation in activations]):
        assert error(see(changed, batches[0]), before) > 1e-6
    assert set(changed.state_dict()) == names
    assert torch.equal(see(changed, batches[0]).memory.keys, before.memory.keys)


def test_what_pictures_bring_is_kept_and_means_are_moved_back(original: Captioner, batches: list[Tensor]) -> None:
    other = torch.from_numpy(pictures(24, seed=9))
    wanted = see(original, other)
    plain = copy.deepcopy(original)
    with rounded(plain) as activations:
        for batch in batches:
            see(plain, batch)
        for activation in activations:
            activation.fit()
    with rounded(plain, [activation.largest for activation in activations]):
        uncorrected = error(see(plain, other), wanted)
    calibrated = copy.deepcopy(original)
    ranges = calibrate(calibrated, batches)
    with rounded(calibrated, ranges):
        found = see(calibrated, other)
    assert error(found, wanted) < min(0.5 * uncorrected, 0.05)
    assert float((found.tags - wanted.tags).abs().max()) < 0.05


def test_the_exported_graph_computes_what_torch_rounds_to(
    original: Captioner, batches: list[Tensor], tmp_path: Path
) -> None:
    save_captioner(original, tmp_path, {})
    export(tmp_path)
    assert not (tmp_path / GRAPHS / f"{ENCODER_INT8}.xml").exists()
    alone = (tmp_path / WEIGHTS).stat().st_size
    export(tmp_path, batches)
    rounding = load_captioner(tmp_path)  # the weights are those in floats
    ranges = calibrate(rounding, batches)
    core, pixels = ov.Core(), pictures(4, seed=5)
    graphs = {
        name: core.read_model(tmp_path / GRAPHS / f"{name}.xml", tmp_path / WEIGHTS) for name in (ENCODER, ENCODER_INT8)
    }
    found = core.compile_model(graphs[ENCODER_INT8], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([pixels])
    floats = see(rounding, torch.from_numpy(pixels))
    with rounded(rounding, ranges):
        wanted = see(rounding, torch.from_numpy(pixels))
    assert float(np.abs(found["tags"] - wanted.tags.numpy()).max()) < 0.02
    start = wanted.memory.start.numpy()
    assert np.abs(found["start"] - start).mean() < 0.5 * np.abs(floats.memory.start.numpy() - start).mean() + 0.01
    # Weights in 8 bits are all that is added: a byte each.
    rounded_weights = sum(module.weight.numel() for module in quantise._weighted(rounding))
    added = (tmp_path / WEIGHTS).stat().st_size - alone
    assert rounded_weights <= added < 1.3 * rounded_weights
    integers = [
        node for node in graphs[ENCODER_INT8].get_ops() if str(node.get_output_element_type(0)) == "<Type: 'int8_t'>"
    ]
    assert sum(np.prod(node.get_output_shape(0)) for node in integers) == rounded_weights


def test_other_encoders_stay_in_floats(tmp_path: Path) -> None:
    assert quantise.can_be_rounded(build(EncoderConfig("efficientnet_lite0")))
    assert not quantise.can_be_rounded(build(EncoderConfig("mobilenet_v3_large")))


def test_pictures_to_calibrate_on_are_the_same_each_time(tmp_path: Path) -> None:
    data = tiny.shapes(tmp_path)
    config = tiny.recipe().model.preprocess
    first, again = (quantise.calibration_pictures(data.split("train"), config) for _ in range(2))
    assert [len(batch) for batch in first] == [22]
    assert torch.equal(first[0], again[0])
    assert first[0].dtype == torch.uint8


def test_an_engine_takes_the_encoder_in_8_bits_where_the_processor_can(
    original: Captioner, batches: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_captioner(original, tmp_path, {})
    export(tmp_path, batches)
    found = {}
    for can in (True, False):
        monkeypatch.setattr("model.runtime.openvino_engine.multiplies_8_bits", lambda can=can: can)
        engine = load_engine(tmp_path, "cpu", "openvino")
        found[can] = engine.encode(pictures(8, seed=4)).memory["keys"]  # type: ignore[attr-defined]
        assert engine.precision == "int8" if can else engine.precision in ("f32", "bf16")
        assert load_engine(tmp_path, "cpu", "openvino", precision="f32").precision == "f32"
    assert 0 < np.abs(found[True] - found[False]).mean() < 0.3 * np.abs(found[False]).mean()
