from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import preprocess
from model.captioner import Captioner
from model.checkpoint import save_captioner
from model.config import SearchConfig
from model.decoder import LikelyTags
from model.encoder import as_regions
from model.errors import ConfigError
from model.runtime import load_engine
from model.vocabulary import SPECIAL, Vocabulary
from tests.model.tiny import SIZE, TAGS, VOCABULARY, captioner, pictures
from training.finishing.export import export


def test_normalises_like_preprocess() -> None:
    tiny, pixels = captioner(), pictures(2)
    ours = tiny.normalise(torch.from_numpy(pixels)).numpy()
    expected = preprocess.normalise(pixels, tiny.config.preprocess).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_from_pixels_and_words_to_logits() -> None:
    tiny = captioner()
    pixels = torch.from_numpy(pictures(2))
    words = torch.randint(4, len(tiny.vocabulary), (2, 3, 5))
    assert tiny.grid == (SIZE // 32, SIZE // 32)
    with torch.no_grad():
        logits = tiny(pixels, words)
        features = as_regions(tiny.encoder.stages(tiny.normalise(pixels)))
        expected = tiny.decoder(tiny.decoder.memory(features), words)
    assert logits.shape == (2, 3, 5, len(tiny.vocabulary))
    torch.testing.assert_close(logits, expected)
    assert (logits[0] - logits[1]).abs().max() > 0.1  # what is said depends on the picture


def test_only_weights_are_in_the_state() -> None:
    names = captioner().state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}
    assert "decoder.never" not in names


@torch.no_grad()
def test_the_decoder_looks_at_the_tags_that_the_picture_most_likely_has() -> None:
    tiny = captioner(tag_slots=3)
    assert tiny.tags is not None
    pixels = torch.from_numpy(pictures(4))
    seen = tiny.see(pixels)
    for picture, tags in enumerate(seen.tags):
        best = sorted(zip(tags.tolist(), TAGS, strict=True), reverse=True)[:3]
        words = torch.tensor([[tiny.vocabulary.words.index(word) for _, word in best]])
        likely = LikelyTags(words, torch.tensor([[p for p, _ in best]]))
        features = as_regions(tiny.encoder.stages(tiny.normalise(pixels[picture : picture + 1])))
        for part, expected in zip(seen.memory, tiny.decoder.memory(features, likely), strict=True):
            torch.testing.assert_close(part[picture : picture + 1], expected, atol=1e-4, rtol=1e-4)
    for part, expected in zip(tiny.encode(pixels), seen.memory, strict=True):
        torch.testing.assert_close(part, expected, atol=0, rtol=0)
    assert {tag for tags in seen.tags for tag in tags.topk(3).indices.tolist()} != set(range(3))  # not always the same


def test_tags_to_look_at_must_be_there() -> None:
    config = captioner(tag_slots=3).config
    with pytest.raises(ConfigError, match="tag_slots is 3, of 2 tags"):
        Captioner(replace(config, tags=TAGS[:2]), VOCABULARY)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_switch_is_served_alike_by_both_engines(cell: str, tmp_path: Path) -> None:
    """Attention feeding, an output of its own and pieces of words: captions, tokens and explanations."""
    pieces = ("a", "the", "dog", "skate", "##board", "##er", "##s", "runs", "on")
    vocabulary = Vocabulary((*SPECIAL, *pieces))
    made = captioner(vocabulary=vocabulary, cell=cell, sentinel=True, feed_attention=True, tied=False)
    save_captioner(made, tmp_path / "made", {})
    export(tmp_path / "made")
    search_config = SearchConfig(beam_size=3, num_captions=2, max_length=6)
    answers = [
        load_engine(tmp_path / "made", "cpu", name, precision="f32").caption(pictures(4), search_config, explain=True)
        for name in ("torch", "openvino")
    ]
    texts = []
    for ours, theirs in zip(*answers, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.text == other.text
            assert one.log_probability == pytest.approx(other.log_probability, abs=0.05)
            assert one.log_probability == pytest.approx(sum(np.log([t.probability for t in one.tokens])), abs=1e-4)
            for mine, its in zip(one.tokens, other.tokens, strict=True):
                assert mine.text == its.text
                assert mine.explanation is not None
                assert its.explanation is not None
                np.testing.assert_allclose(mine.explanation.attention, its.explanation.attention, atol=0.02)
            said = "".join(f" {t.text}" for t in one.tokens[:-1]).replace(" ##", "").replace("##", "")
            assert one.text.lower().rstrip(".") == said.strip()
            texts += [t.text for t in one.tokens]
    assert any(text.startswith("##") for text in texts)
