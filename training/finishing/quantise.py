"""An encoder that computes with 8-bit numbers, and still sees what it sees with 32.

Processors multiply 8-bit integers up to four times as fast as floats and read a quarter of the memory. A weight becomes
one of 255 multiples of a step, one step an output channel; an activation one of 256, one step a tensor:

    rounded(x) = step * clip(round(x / step), low, high)

(Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342.) EfficientNet-Lite was made for it: ReLU6
bounds its activations. Here torch computes what those integers stand for. `calibrate` chooses the steps from what
pictures bring, and moves the mean of each channel back to where it was, which most of the error comes from (Nagel et
al. 2019, arXiv:1906.04721). The exported graph holds the same roundings, from which OpenVINO plans integer kernels.
The first stages stay in floats: they do little of the work, and would make most of the error that is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from model.captioner import Captioner
from model.config import PreprocessConfig
from model.encoder import Encoder, LiteBlock, SamePad, fold_norms
from model.preprocess import to_pixels
from training.data import Picture
from training.evaluation import decoded

from torchvision.ops import Conv2dNormActivation  # isort: skip  (after model.torchvision_compat)

FLOAT_STAGES = 2  # the first, which are not rounded
PICTURES, BATCH = 256, 128
SAMPLE = 4096  # values a batch that an activation's range is chosen by


def can_be_rounded(encoder: Encoder) -> bool:
    """Whether it is an EfficientNet-Lite."""
    return any(isinstance(module, LiteBlock) for module in encoder.modules())


class RoundedWeight(nn.Module):
    """A weight (out, ...) as 8-bit numbers, one step an output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        step = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-8) / 127
        zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, step, zeros, 0, -127, 127)


class RoundedActivation:
    """What a module reads becomes 8-bit numbers, 0 to `largest`, or -`largest` to `largest`."""

    def __init__(self, signed: bool, largest: float = 0.0) -> None:
        self.levels = (-128, 127) if signed else (0, 255)
        self.largest = largest
        self.samples: list[Tensor] | None = None  # collected while it only watches
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor) -> Tensor:
        if self.samples is not None:
            values = x.detach().abs().flatten()
            self.samples.append(values[torch.randint(len(values), (SAMPLE,), generator=self.generator)])
            self.largest = max(self.largest, float(values.max()))
            return x
        low, high = self.levels
        return torch.fake_quantize_per_tensor_affine(x, self.largest / high, 0, low, high)

    def fit(self) -> None:
        """Of ranges up to the largest value seen, take the one that rounds the sample with the least squared error."""
        values = torch.cat(self.samples or [])
        self.largest = min((self.largest * k / 100 for k in range(20, 101)), key=lambda top: self._error(values, top))
        self.samples = None

    def _error(self, values: Tensor, largest: float) -> float:
        step = largest / self.levels[1]
        return float(((values / step).round().clamp(max=self.levels[1]) * step - values).square().mean())


@contextmanager
def rounded(captioner: Captioner, ranges: Sequence[float] = ()) -> Iterator[list[RoundedActivation]]:
    """Within it the encoder, and the products that make keys, values and tags of its regions, compute in 8 bits.

    What a convolution or a product reads is rounded; what a block adds to its input is not, nor is their sum, so that
    errors do not pile up from block to block.
    ranges: what `calibrate` gave; without any the activations are not rounded, they only watch.
    The encoder must be of a kind that `can_be_rounded` knows, its batch norms folded (`fold_norms`).
    """
    # The first convolution of a block reads a sum, of both signs; the others what ReLU6 gave, as the regions are.
    stages = captioner.encoder.stages
    readers: list[tuple[nn.Module, bool]] = []
    for block in stages[FLOAT_STAGES:].modules():
        if isinstance(block, LiteBlock):
            for previous, layer in itertools.pairwise((None, *block.layers)):
                if isinstance(layer, Conv2dNormActivation):
                    # What is padded first is rounded before: so it is never as large as floats are.
                    readers.append((previous if isinstance(previous, SamePad) else layer, previous is None))
    readers.append((stages[-1], True))
    if captioner.decoder.attends:
        readers += [(captioner.decoder.key, True), (captioner.decoder.value, True)]
    before = [RoundedActivation(signed) for _, signed in readers]
    regions = RoundedActivation(False)
    activations = [*before, regions]
    if ranges:
        for activation, largest in zip(activations, ranges, strict=True):
            activation.largest = largest
    else:
        for activation in activations:
            activation.samples = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, round=activation: round(*inputs))
        for (module, _), activation in zip(readers, before, strict=True)
    ]
    hooks.append(stages[-1].register_forward_hook(lambda _, inputs, output: regions(output)))
    weighted = list(_weighted(captioner))
    for module in weighted:
        parametrize.register_parametrization(module, "weight", RoundedWeight())
    try:
        yield activations
    finally:
        for hook in hooks:
            hook.remove()
        for module in weighted:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def _weighted(captioner: Captioner) -> Iterator[nn.Module]:
    """The modules whose weights are rounded."""
    yield from (module for module in captioner.encoder.stages[FLOAT_STAGES:].modules() if isinstance(module, nn.Conv2d))
    yield captioner.decoder.region
    if captioner.decoder.attends:
        yield from (captioner.decoder.key, captioner.decoder.value)
    if captioner.tags is not None:
        yield captioner.tags.region


def calibration_pictures(pictures: Sequence[Picture], config: PreprocessConfig) -> list[Tensor]:
    """Of training pictures those that `calibrate` gets."""
    chosen = np.random.default_rng(0).permutation(len(pictures))[:PICTURES]
    batches = decoded([pictures[i] for i in chosen], lambda image: to_pixels(image, config), BATCH)
    return [torch.from_numpy(pixels) for _, pixels in batches]


@torch.no_grad()
def calibrate(captioner: Captioner, pictures: Sequence[Tensor]) -> tuple[float, ...]:
    """Prepare the captioner's encoder for 8 bits, in place; returns the ranges for `rounded`.

    pictures: batches (B, S, S, 3) uint8 of a few hundred in all; the first should be large, means are taken there.
    Ranges leave out the few values that would coarsen the rest. Then, one convolution after another, the biases take
    back what rounding has moved of each channel's mean.
    """
    captioner.eval()
    fold_norms(captioner.encoder)
    means: list[Tensor] = []
    convolutions = [
        module for module in captioner.encoder.stages[FLOAT_STAGES:].modules()
        if isinstance(module, Conv2dNormActivation)
    ]  # fmt: skip
    with _hooked(convolutions, lambda module, output: means.append(_activated(module, output).mean((0, 2, 3)))):
        captioner.see(pictures[0])
    with rounded(captioner) as activations:
        for batch in pictures:
            captioner.see(batch)
        for activation in activations:
            activation.fit()
    ranges = tuple(activation.largest for activation in activations)
    wanted = iter(means)

    def correct(module: nn.Module, output: Tensor) -> Tensor:
        mean, moved = next(wanted), torch.zeros(output.shape[1])
        for _ in range(5):  # Newton's method, for ReLU6 cuts some of what is added
            now = output + moved[:, None, None]
            active = (_activated(module, now) == now).float().mean((0, 2, 3))
            moved += (mean - _activated(module, now).mean((0, 2, 3))) / active.clamp(min=0.05)
        module[1].bias += moved  # type: ignore[index]
        return output + moved[:, None, None]

    with rounded(captioner, ranges), _hooked(convolutions, correct):
        captioner.see(pictures[0])
    return ranges


def _activated(module: nn.Module, output: Tensor) -> Tensor:
    """What a block of convolution, batch norm and perhaps ReLU6 makes of what its batch norm gives."""
    return output if len(module) == 2 else output.clamp(0, 6)  # type: ignore[arg-type]


@contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Callable[[nn.Module, Tensor], Tensor | None]) -> Iterator[None]:
    """Within it `hook` gets what the batch norm of each of `modules` gives, before its ReLU6, and may change it."""
    handles = [
        module[1].register_forward_hook(lambda _, inputs, output, module=module: hook(module, output))  # type: ignore[index]
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
