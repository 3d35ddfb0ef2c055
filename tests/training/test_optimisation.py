from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.captioner import Captioner
from model.decoder import Memory
from tests.training import tiny
from training.batching import Batch, padded
from training.config import TrainConfig
from training.objectives import memory_of
from training.optimisation import (
    TrainingDiverged,
    WeightAverage,
    descend,
    learning_rate_factor,
    parameter_groups,
    training_mode,
)

A, RED, CIRCLE = 4, 5, 6  # any words will do


def one_epoch(captioner: Captioner, loss_of: Any, config: TrainConfig, frozen: int = 9) -> list[tuple[float, float]]:
    seen = []
    parameters = list(captioner.decoder.parameters())
    batch = Batch(torch.randn(2, 1280, 1, 1), padded([[[A]], [[RED]]]), [0, 1], [False, False])
    if frozen == 0:
        batch = replace(batch, inputs=torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    optimizer = torch.optim.SGD(parameters, 0.1)
    training_mode(captioner, frozen, config)
    for each in (batch, batch):
        loss, metric = loss_of(memory_of(captioner, each.inputs, frozen), each)
        descend(loss, optimizer, config.clip)
        seen.append((float(loss.detach()), metric))
    return seen


def test_the_average_follows_the_weights_and_swaps_both_ways() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    first, frozen = layer.weight.detach().clone(), layer.bias.detach().clone()
    average = WeightAverage(layer, decay=0.5)
    expected = first.clone()
    for step in range(1, 30):
        with torch.no_grad():
            layer.weight.add_(step)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    last = layer.weight.detach().clone()
    average.swap()
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert torch.equal(layer.bias, frozen)
    average.swap()
    assert torch.equal(layer.weight, last)


def test_statistics_that_are_learnt_are_averaged_with_the_weights() -> None:
    norm = torch.nn.BatchNorm1d(3)
    average = WeightAverage(norm, decay=0.5)
    mean, var = torch.zeros(3), torch.ones(3)
    for step in range(1, 20):
        norm(torch.randn(8, 3) * step + step)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        mean = torch.lerp(mean, norm.running_mean, 1 - decay)
        var = torch.lerp(var, norm.running_var, 1 - decay)
    assert not torch.allclose(norm.running_mean, mean)
    average.swap()
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


def test_the_norm_is_the_gradients_before_it_is_clipped() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], 1.0)
    assert descend(weight.square().sum(), optimizer, 5.0) == pytest.approx(10)  # the gradient is (6, 8)
    torch.testing.assert_close(weight.detach(), torch.tensor([0.0, 0.0]), atol=1e-4, rtol=0)
    assert weight.grad is None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_before_it_touches_the_weights(value: float, captioner: Captioner) -> None:
    before = {name: p.clone() for name, p in captioner.state_dict().items()}
    steps = iter([value])

    def loss_of(of: Memory, batch: Batch) -> tuple[Tensor, float]:
        return of.start.sum() * next(steps), 0.0

    with pytest.raises(TrainingDiverged, match=r"the loss is (inf|-inf|nan), .*lower train\.learning_rate"):
        one_epoch(captioner, loss_of, TrainConfig(precision="fp32"))
    assert all(torch.equal(value, before[name]) for name, value in captioner.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_before_it_touches_the_weights(captioner: Captioner) -> None:
    before = {name: p.clone() for name, p in captioner.state_dict().items()}

    def loss_of(of: Memory, batch: Batch) -> tuple[Tensor, float]:
        return (of.start * 0).abs().sqrt().sum(), 0.0  # 0, with an infinite slope

    with pytest.raises(TrainingDiverged, match=r"the loss is 0\.0, its gradient's norm nan"):
        one_epoch(captioner, loss_of, TrainConfig(precision="fp32"))
    assert all(torch.equal(value, before[name]) for name, value in captioner.state_dict().items())


@pytest.mark.parametrize("batch_norm", ["kept", "learnt"])
def test_batch_norm_statistics(batch_norm: Any, tmp_path: Path) -> None:
    captioner = tiny.captioner(tiny.shapes(tmp_path))
    before = {name: p.clone() for name, p in captioner.state_dict().items() if "running_mean" in name}

    def loss_of(of: Memory, batch: Batch) -> tuple[Tensor, float]:
        return of.start.square().sum(), 1.5

    for frozen in (9, 0):
        seen = one_epoch(captioner, loss_of, TrainConfig(precision="fp32", batch_norm=batch_norm), frozen)
        assert len(seen) == 2
        assert seen[0][1] == 1.5
        now = captioner.state_dict()
        same = [torch.equal(now[name], value) for name, value in before.items()]
        assert all(same) if batch_norm == "kept" or frozen == 9 else not any(same)


def test_blocks_are_left_out_of_the_trained_stages_while_training_and_never_otherwise(tmp_path: Path) -> None:
    captioner = tiny.captioner(tiny.shapes(tmp_path))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    seen: list[Tensor] = []

    def loss_of(of: Memory, batch: Batch) -> tuple[Tensor, float]:
        seen.append(captioner.encoder(captioner.normalise(pixels)).detach())
        return of.start.square().sum(), 0.0

    captioner.eval()
    whole = captioner.encoder(captioner.normalise(pixels)).detach()
    for frozen, drop_path, alike in ((0, 0.0, True), (0, 0.5, False), (9, 0.5, True), (0, 0.0, True)):
        seen.clear()
        one_epoch(captioner, loss_of, TrainConfig(precision="fp32", drop_path=drop_path), frozen)
        assert torch.equal(seen[0], seen[1]) == alike
        assert torch.equal(seen[0], whole) == alike
    one_epoch(captioner, loss_of, TrainConfig(precision="fp32", drop_path=0.5), 0)
    captioner.eval()
    assert torch.equal(captioner.encoder(captioner.normalise(pixels)), whole)


def test_later_stages_learn_faster_and_vectors_do_not_decay(tmp_path: Path) -> None:
    recipe = tiny.recipe(learning_rate=1.0, encoder_learning_rate=0.1, encoder_decay=0.5, weight_decay=0.2)
    captioner = tiny.captioner(tiny.shapes(tmp_path))
    groups = parameter_groups(captioner, 6, recipe.train)
    assert [group["peak"] for group in groups] == pytest.approx([1, 1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025])
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
        assert all(p.requires_grad for p in group["params"])
    assert not any(p.requires_grad for p in captioner.encoder.stages[:6].parameters())
    assert len({id(p) for group in groups for p in group["params"]}) == sum(len(g["params"]) for g in groups)


def test_the_schedule_warms_up_and_falls_to_a_twentieth() -> None:
    rates = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[100] == pytest.approx(0.05)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate_factor(3, 2, 10) == pytest.approx(0.4)  # a run shorter than its warm-up
    for steps in (25, 100, 5000):  # a share is of the steps that there are
        assert learning_rate_factor(round(0.2 * steps), steps, 0.2) == pytest.approx(1)
        assert learning_rate_factor(0, steps, 0.2) == pytest.approx(5 / steps)
    assert learning_rate_factor(0, 10, 0.0) == 1
