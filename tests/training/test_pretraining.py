from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.captioner import Captioner
from model.checkpoint import load_captioner, open_checkpoint, save_captioner
from model.vocabulary import END, PAD, START
from tests.training import tiny
from training import loop
from training.augment import AugmentConfig
from training.data import CaptionData, DataError
from training.finishing.tags import give_tags, sensitivity
from training.initialisation import inherited, with_slots
from training.loop import train
from training.pretraining import SENSITIVITY, Imagined, LanguageModel, SentenceSource, pretrain, surprise
from training.scoring.metrics import expected_calibration_error
from training.scoring.objects import WORDS

SENTENCES = [f"a {colour} {animal} {verb} on the {place}"
             for colour in ("purple", "grey") for animal in ("horse", "cow", "hen") for verb in ("stands", "lies")
             for place in ("meadow", "roof")]  # fmt: skip
LINES = [SENTENCES[i : i + 3] for i in range(0, len(SENTENCES), 3)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("decoder", [{}, {"sentinel": True}, {"attention_heads": 0}, {"layers": 1}])
def test_no_picture_is_learnt_and_what_reads_pictures_is_not(data: CaptionData, decoder: dict[str, object]) -> None:
    recipe = tiny.recipe()
    recipe = replace(recipe, model=replace(recipe.model, decoder=replace(recipe.model.decoder, **decoder)))  # type: ignore[arg-type]
    model = LanguageModel(tiny.captioner(data, recipe))
    for parameter in model.no_picture.parameters():
        torch.nn.init.normal_(parameter)
    batch = next(SentenceSource([SENTENCES[:5]], model.captioner, recipe.train).batches(0, tiny.CPU))
    model.loss(batch.words, batch.inputs, 0.1).backward()
    for name, parameter in model.no_picture.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, name
            # One place alone takes all the weight, whatever its key, unless the sentinel competes with it.
            alone = name == "keys" and "sentinel" not in decoder
            assert bool(parameter.grad.abs().max() > 1e-7) != alone, name
    reads = ("region", "start", "key", "value", "position")
    for name, parameter in model.captioner.decoder.named_parameters():
        assert (parameter.grad is None) == name.startswith(reads), name
    assert all(parameter.grad is None for parameter in model.captioner.encoder.parameters())


def looking_at_tags(data: CaptionData) -> Captioner:
    """A captioner whose decoder has two places for tags, with some tags."""
    captioner = tiny.captioner(data)
    give_tags(captioner, data, 4, 1, WORDS, 1, 1, AugmentConfig(), Path(data.pictures[0].path).parent / "cache")
    return with_slots(captioner, 2)


def test_imagined_tags_are_as_often_wrong_as_they_say() -> None:
    tags, lines = ["horse", "cow", "purple", "boat"], LINES * 20
    imagined = Imagined(lines, tags)
    said = np.array([[any(tag in sentence.split() for sentence in line) for tag in tags] for line in lines])
    probabilities = torch.cat([imagined(range(len(lines)), np.random.default_rng(i)) for i in range(20)]).numpy()
    truth = np.tile(said, (20, 1))
    assert expected_calibration_error(probabilities.ravel(), truth.ravel()) < 0.03
    found = sensitivity(probabilities[:, :3], truth[:, :3].astype(np.float32))
    assert found == pytest.approx(SENSITIVITY, abs=0.1)
    assert probabilities[:, 3].max() < 0.5  # of what nobody says of any
    same = imagined([1, 5], np.random.default_rng(3)), imagined([1, 5], np.random.default_rng(3))
    assert torch.equal(*same)


def test_a_decoder_that_looks_at_tags_learns_how_they_become_a_sentence(data: CaptionData, tmp_path: Path) -> None:
    model = LanguageModel(looking_at_tags(data))
    config = tiny.recipe().train
    batch = next(SentenceSource(LINES, model.captioner, config).batches(0, tiny.CPU))
    assert batch.inputs.shape == (len(batch.rows), len(model.captioner.config.tags))
    model.loss(batch.words, batch.inputs, 0.1).backward()
    assert model.captioner.decoder.tag.weight.grad.abs().max() > 1e-7
    # What the tags say matters, and is of the sentence's own line.
    model.eval()
    others = model.loss(batch.words, batch.inputs.flip(0).roll(1, 1), 0.0)
    assert model.loss(batch.words, batch.inputs, 0.0) != others
    save_captioner(model.captioner, tmp_path / "tagged", {})
    recipe = replace(inherited(tmp_path / "tagged"), min_count=1, extend=True, train=tiny.recipe(epochs=1).train)
    read = load_captioner(pretrain(recipe, data, LINES, tmp_path / "run", tiny.CPU, tmp_path / "tagged"))
    assert read.config.tags == model.captioner.config.tags
    assert {"purple", "meadow"} <= set(read.vocabulary.words)
    assert not torch.equal(read.decoder.tag.weight, model.captioner.decoder.tag.weight)


def test_every_sentence_is_read_once_an_epoch_whole(data: CaptionData) -> None:
    captioner = tiny.captioner(data)
    said = [caption for picture in data.pictures for caption in picture.captions]
    sentences = (said * 3)[:45]
    config = tiny.recipe().train
    source = SentenceSource([sentences[:30], sentences[30:]], captioner, config)
    for epoch in (0, 1):
        batches = list(source.batches(epoch, tiny.CPU))
        assert len(batches) == len(source) == 3  # of 8 pictures' two captions
        assert sorted(row for batch in batches for row in batch.rows) == list(range(45))
        for batch in batches:
            assert batch.words.shape[:2] == (len(batch.rows), 1)
            for row, words in zip(batch.rows, batch.words[:, 0].tolist(), strict=True):
                assert [i for i in words if i != PAD] == [START, *captioner.vocabulary.encode(sentences[row]), END]
    first, later = list(source.batches(0, tiny.CPU)), list(source.batches(0, tiny.CPU, 1))
    assert [batch.rows for batch in first[1:]] == [batch.rows for batch in later]
    assert first[0].rows != next(source.batches(1, tiny.CPU)).rows


def test_a_decoder_that_has_read_finds_such_sentences_likelier_and_goes_on_with_pictures(
    data: CaptionData, tmp_path: Path
) -> None:
    said = [caption for picture in data.split("train") for caption in picture.captions]
    best = pretrain(tiny.recipe(epochs=4), data, [*LINES, said, said], tmp_path / "read", tiny.CPU)
    history = json.loads((tmp_path / "read" / "history.json").read_text())
    assert [math.log(epoch["val_perplexity"]) for epoch in history] == pytest.approx([e["val_loss"] for e in history])
    assert history[-1]["val_loss"] < history[0]["val_loss"]  # of captions it has not read
    opened = open_checkpoint(best)
    assert {"purple", "meadow", *said[0].split()} <= set(opened.vocabulary.words)  # of sentences and of captions
    read = load_captioner(best)  # nothing in it that a served model has not
    go_on = replace(inherited(best), min_count=1, train=tiny.recipe(epochs=1).train)
    train(go_on, data, tmp_path / "seen", tmp_path / "cache", tiny.CPU, best)
    assert load_captioner(tmp_path / "seen" / "best").vocabulary.words == read.vocabulary.words


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(save_every=-1.0)
    pretrain(recipe, data, LINES, tmp_path / "whole", tiny.CPU)
    descend, steps = loop.optimisation.descend, []

    def dying(*arguments: object) -> float:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return descend(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop.optimisation, "descend", dying)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, data, LINES, tmp_path / "killed", tiny.CPU)
    pretrain(recipe, data, LINES, tmp_path / "killed", tiny.CPU)
    whole, killed = (torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("whole", "killed"))
    assert "no_picture.start" in whole["model"]
    assert whole["model"].keys() == killed["model"].keys()
    assert all(torch.equal(value, killed["model"][name]) for name, value in whole["model"].items())
    with pytest.raises(DataError, match="holds another run, with other sentences"):
        pretrain(recipe, data, LINES[::-1], tmp_path / "killed", tiny.CPU)


def test_surprise_is_the_mean_over_words_however_they_are_batched(data: CaptionData) -> None:
    model = LanguageModel(tiny.captioner(data)).eval()
    captions = [caption for picture in data.split("val") for caption in picture.captions]
    many = captions * (1200 // len(captions))
    lengths = [len(model.captioner.vocabulary.encode(caption)) + 1 for caption in captions]
    each = [surprise(model, [[caption]], tiny.recipe().train, tiny.CPU) for caption in captions]
    expected = float(np.average(each, weights=lengths))
    assert surprise(model, [many], tiny.recipe().train, tiny.CPU) == pytest.approx(expected, rel=1e-4)
