"""The optimizer's side of a step: groups, learning rate, clipping, the average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model.captioner import Captioner
from model.encoder import drop_paths
from training import distributed
from training.config import TrainConfig
from training.process import Precision, native


def parameter_groups(captioner: Captioner, frozen: int, config: TrainConfig) -> list[dict[str, Any]]:
    """Decoder, then the trained encoder stages, last first and ever slower; vectors without weight decay."""
    captioner.requires_grad_(False)
    parts: list[tuple[torch.nn.Module, float]] = [(captioner.decoder, config.learning_rate)]
    for depth, stage in enumerate(reversed(list(captioner.encoder.stages.children())[frozen:])):
        parts.append((stage, config.encoder_learning_rate * config.encoder_decay**depth))
    groups: list[dict[str, Any]] = []
    for module, peak in parts:
        module.requires_grad_(True)
        matrices = [p for p in module.parameters() if p.ndim > 1]
        vectors = [p for p in module.parameters() if p.ndim <= 1]
        groups.append({"params": matrices, "peak": peak, "lr": peak, "weight_decay": config.weight_decay})
        groups.append({"params": vectors, "peak": peak, "lr": peak, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, for a share of all steps or from 1 on so many; then a cosine down to a twentieth."""
    rise = warmup if warmup >= 1 else warmup * steps
    if step < rise:
        return min((step + 1) / rise, 1.0)
    done = min((step - rise) / max(steps - rise, 1), 1.0)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


class TrainingDiverged(RuntimeError):
    """The loss is not finite; the message says what to try."""


class WeightAverage:
    """Exponential moving average of a module's weights (Polyak averaging), with a warm-up of its decay.

    Of floating-point buffers too: statistics that batch norm learns belong to the weights of their time.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.parameters += [b for b in module.buffers() if b.is_floating_point()]
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(self.shadow, self.parameters, self.steps)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights and the average; a second call undoes it."""
        for parameter, average in zip(self.parameters, self.shadow, strict=True):
            keep = parameter.clone()
            parameter.copy_(average)
            average.copy_(keep)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bf16 where the recipe asks for it, or leaves it to the device and that has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native(precision, device) == "bf16")


def training_mode(captioner: Captioner, frozen_stages: int, config: TrainConfig) -> None:
    """Dropout and the like where the recipe wants them."""
    captioner.train()
    if config.candidates == "beam":
        captioner.decoder.eval()  # candidates are scored by the decoder that found them: no dropout
    captioner.encoder.eval()  # batch-norm statistics stay those of ImageNet, even of stages that are trained
    if config.batch_norm == "learnt":
        captioner.encoder.stages[frozen_stages:].train()
    drop_paths(captioner.encoder.stages[frozen_stages:], config.drop_path)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float) -> float:
    """One step of the optimizer down the slope of a loss; returns the norm of the gradient before it was clipped.

    Raises `TrainingDiverged` for a loss or gradient that is not finite, before it touches the weights.
    """
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    distributed.average(p.grad for p in parameters if p.grad is not None)
    norm = float(nn.utils.clip_grad_norm_(parameters, clip, foreach=True))
    if not (math.isfinite(float(loss.detach())) and math.isfinite(norm)):
        raise TrainingDiverged(
            f"the loss is {float(loss.detach())}, its gradient's norm {norm}; lower train.learning_rate or train.clip, "
            "or try train.precision = 'fp32'"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
