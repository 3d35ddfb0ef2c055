from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_captioner, save_captioner
from model.config import RerankConfig
from model.errors import ConfigError
from model.vocabulary import SPECIAL, Vocabulary, words_of
from tests.model.tiny import liven
from tests.training import tiny
from training.data import CaptionData
from training.initialisation import extended, inherited, initial_captioner
from training.validation import FEWEST


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"), val=FEWEST)


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize(("stages", "slots"), [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_what_a_release_was_fitted_with_is_left_behind_but_tags_that_still_hold(
    stages: int, slots: int, extend: bool, data: CaptionData, tmp_path: Path
) -> None:
    released = tiny.as_released(data, tmp_path)
    recipe = replace(inherited(tmp_path), train_stages=stages, extend=extend, min_count=1)
    recipe = replace(recipe, model=replace(recipe.model, decoder=replace(recipe.model.decoder, tag_slots=slots)))
    words = ("zebras", "graze") if extend else ()
    more = replace(data.split("train")[0], captions=(" ".join(words),)) if extend else data.split("train")[0]
    made = initial_captioner(recipe, CaptionData((more,), {}), tmp_path)
    kept = stages == 0 or slots > 0
    assert made.config.rerank == RerankConfig()
    assert made.config.review_below == 0
    assert (made.feature, made.config.tags) == (None, released.config.tags if kept else ())
    assert (made.tags is not None) == kept
    assert made.vocabulary.words == (*released.vocabulary.words, *sorted(words))
    state, before = made.state_dict(), released.state_dict()
    for name, value in before.items():
        if name.startswith("feature") or (name.startswith("tags") and not kept):
            assert name not in state
        elif extend and len(value.shape) and len(value) == len(released.vocabulary):
            assert torch.allclose(state[name][: len(value)], value, atol=1e-3)
        else:
            assert torch.allclose(state[name], value, atol=1e-3)  # float16
    assert {name for name in state if name not in before} == (
        {"decoder.tag.weight", "decoder.tag.bias"} if slots else set()
    )
    save_captioner(made, tmp_path / "again", {})
    assert load_captioner(tmp_path / "again").config == made.config


def test_a_fresh_decoder_may_begin_with_the_encoder_of_a_checkpoint(data: CaptionData, tmp_path: Path) -> None:
    released = tiny.as_released(data, tmp_path)
    of = replace(tiny.recipe(), encoder_weights=str(tmp_path))
    decoder = replace(of.model.decoder, hidden_size=24, layers=1)
    made = initial_captioner(replace(of, model=replace(of.model, decoder=decoder)), data, None)
    for name, value in released.encoder.state_dict().items():
        assert torch.allclose(made.encoder.state_dict()[name], value, atol=1e-3)  # float16
    assert made.config.decoder.hidden_size == 24
    assert (made.config.tags, made.tags) == ((), None)
    known = {word for picture in data.split("train") for caption in picture.captions for word in words_of(caption)}
    assert set(made.vocabulary.words[len(SPECIAL) :]) == known
    larger = replace(of.model, preprocess=replace(of.model.preprocess, size=64))
    with pytest.raises(ConfigError, match=r"whose model\.preprocess\.size is 32; the recipe has 64"):
        initial_captioner(replace(of, model=larger), data, None)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_grows_and_what_is_said_stays(tied: bool, data: CaptionData) -> None:
    of = tiny.recipe()
    of = replace(of, model=replace(of.model, decoder=replace(of.model.decoder, tied=tied)))
    before = tiny.captioner(data, of).eval()
    liven(before.decoder)
    after = extended(before, Vocabulary((*SPECIAL, "zebra", before.vocabulary.words[5], "oboe"), {"zebra": "Zebra"}))
    assert after.vocabulary.words == (*before.vocabulary.words, "zebra", "oboe")
    assert after.vocabulary.capitals == {"zebra": "Zebra"}
    known = len(before.vocabulary)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    words = torch.tensor([[[1, 4, 5, 6]], [[1, 6, 5, 4]]])
    torch.testing.assert_close(after(pixels, words)[..., :known], before(pixels, words))
    assert (after.decoder.output_bias[known:] == before.decoder.output_bias[4:].min()).all()
    assert not torch.equal(after.decoder.embedding.weight[known], after.decoder.embedding.weight[known + 1])
