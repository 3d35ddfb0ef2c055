from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

from model import runtime
from model.config import SearchConfig
from model.errors import CheckpointError, EngineUnavailable
from model.runtime import load_engine
from model.runtime.engine import CaptionEngine
from tests.model.tiny import SIZE, VOCABULARY, pictures

both = pytest.mark.parametrize("name", ["torch", "openvino"])


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> dict[str, CaptionEngine]:
    return {
        "torch": load_engine(checkpoint, "cpu", "torch", precision="f32"),
        "openvino": load_engine(checkpoint, "cpu", "openvino", precision="f32"),
    }


@both
def test_it_says_what_it_runs(name: str, loaded: dict[str, CaptionEngine]) -> None:
    engine = loaded[name]
    assert (engine.name, engine.device) == (name, "cpu")
    assert (engine.config.name, engine.config.version) == ("tiny", "7")
    assert engine.card["limits"] == ["says nonsense"]


@both
def test_pictures_of_any_shape_are_prepared(name: str, loaded: dict[str, CaptionEngine]) -> None:
    pixels = loaded[name].preprocess(Image.new("L", (300, 17), 90))
    assert pixels.shape == (SIZE, SIZE, 3)
    assert (pixels == 90).all()


@both
@pytest.mark.parametrize(
    "search_config",
    [
        SearchConfig(beam_size=1, max_length=6),
        SearchConfig(beam_size=3, num_captions=5, max_length=6),
        SearchConfig(strategy="sample", num_captions=3, max_length=6, seed=3),
    ],
)
def test_a_batch_gives_what_each_picture_alone_gives(
    name: str, search_config: SearchConfig, loaded: dict[str, CaptionEngine]
) -> None:
    engine, pixels = loaded[name], pictures(5)
    together = engine.caption(pixels, search_config)
    assert len({found[0].text for found in together}) > 1  # the pictures matter
    for picture, found in zip(pixels, together, strict=True):
        (alone,) = engine.caption(picture[None], search_config)
        assert [c.text for c in alone] == [c.text for c in found]
        assert len({c.text for c in found}) == search_config.num_captions
        for a, b in zip(alone, found, strict=True):
            assert a.log_probability == pytest.approx(b.log_probability, abs=1e-3)


@both
def test_encoded_pictures_can_be_taken_apart_and_captioned_again(name: str, loaded: dict[str, CaptionEngine]) -> None:
    engine, pixels = loaded[name], pictures(4)
    regions = engine.encode(pixels)
    assert len(regions) == 4
    some = regions.select([3, 1])
    assert len(some) == 2
    texts = [found[0].text for found in engine.generate(regions)]
    assert [found[0].text for found in engine.generate(some)] == [texts[3], texts[1]]
    assert [found[0].text for found in engine.generate(regions)] == texts
    assert [found[0].text for found in engine.caption(pixels)] == texts


@both
def test_explaining_changes_nothing_else(name: str, loaded: dict[str, CaptionEngine]) -> None:
    engine = loaded[name]
    regions = engine.encode(pictures(3))
    search_config = SearchConfig(num_captions=2, max_length=6)
    plain, explained = engine.generate(regions, search_config), engine.generate(regions, search_config, explain=True)
    for mine, theirs in zip(plain, explained, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a.text, a.log_probability) == (b.text, b.log_probability)
            for token, with_reason in zip(a.tokens, b.tokens, strict=True):
                assert token.explanation is None
                assert (token.text, token.probability) == (with_reason.text, with_reason.probability)


@both
def test_explanations_are_of_the_words_said(name: str, loaded: dict[str, CaptionEngine]) -> None:
    engine = loaded[name]
    for found in engine.caption(pictures(2), SearchConfig(num_captions=2, max_length=5), explain=True):
        for caption in found:
            for token in caption.tokens:
                why = token.explanation
                assert why is not None
                assert why.attention.shape == (2, 2)
                assert why.attention.sum() + why.sentinel == pytest.approx(1, abs=1e-4)
                assert 0 < why.sentinel < 1
                assert [tuple(layer) for layer in why.layers] == [
                    ("forget", "input", "output", "candidate", "state", "hidden")
                ] * 2
                assert token.text not in {other.text for other in why.alternatives}
                assert {other.text for other in why.alternatives} <= {".", *VOCABULARY.words[4:]}
                ranks = [other.probability for other in why.alternatives]
                assert ranks == sorted(ranks, reverse=True)
                assert sum(ranks) + token.probability <= 1 + 1e-4


@both
def test_probabilities_are_those_of_the_calibrated_model(name: str, loaded: dict[str, CaptionEngine]) -> None:
    """The caption's log-probability is teacher forcing's, at the checkpoint's temperature."""
    torch_engine = loaded["torch"]
    captioner = torch_engine._captioner  # type: ignore[attr-defined]
    pixels = pictures(3)
    for picture, (caption, *_) in zip(pixels, loaded[name].caption(pixels), strict=True):
        said = [t.text for t in caption.tokens[:-1]]
        ids = torch.tensor([[[1, *captioner.vocabulary.encode(" ".join(said))]]])
        with torch.no_grad():
            logits = captioner(torch.from_numpy(picture[None]), ids)
            log_probs = captioner.decoder.log_probabilities(logits, torch_engine.config.temperature)[0, 0]
        targets = [*ids[0, 0, 1:].tolist(), 2]
        expected = sum(float(log_probs[t, word]) for t, word in enumerate(targets))
        assert caption.log_probability == pytest.approx(expected, abs=0.02)


@both
def test_read_only_pixels_are_taken(name: str, loaded: dict[str, CaptionEngine]) -> None:
    pixels = pictures(1)
    pixels.flags.writeable = False
    assert loaded[name].caption(pixels)


@both
def test_warming_up_leaves_no_trace(name: str, loaded: dict[str, CaptionEngine]) -> None:
    engine, pixels = loaded[name], pictures(2)
    before = engine.caption(pixels)
    engine.warm_up((1, 3))
    assert engine.caption(pixels) == before


def test_auto_takes_openvino_where_there_is_no_gpu(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_engine(checkpoint).name == "openvino"
    assert load_engine(checkpoint, "cpu").name == "openvino"


def test_cuda_without_a_gpu_is_a_clear_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineUnavailable, match="torch sees no GPU; use --device cpu"):
        load_engine(checkpoint, "cuda")
    with pytest.raises(EngineUnavailable, match="OpenVINO runs on the CPU"):
        load_engine(checkpoint, "cuda", "openvino")


def test_torch_where_it_is_not_installed_is_a_clear_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    for device, engine in (("cpu", "torch"), ("cuda", "auto")):
        with pytest.raises(EngineUnavailable, match=r"needs torch: pip install '\.\[gpu\]', or use --device cpu"):
            load_engine(checkpoint, device, engine)  # type: ignore[arg-type]
    assert load_engine(checkpoint).name == "openvino"


@both
def test_a_bad_folder_is_a_clear_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_engine(tmp_path / "nowhere", "cpu", name)  # type: ignore[arg-type]


def test_the_thread_limit_reaches_torch(checkpoint: Path) -> None:
    before = torch.get_num_threads()
    try:
        load_engine(checkpoint, "cpu", "torch", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
