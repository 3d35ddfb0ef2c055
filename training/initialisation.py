"""What a run starts from: a fresh captioner, or that of a checkpoint, and its teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch

from model.captioner import Captioner
from model.checkpoint import load_captioner, open_checkpoint
from model.config import ModelConfig, PreprocessConfig
from model.encoder import default_preprocess
from model.errors import ConfigError
from model.vocabulary import SPECIAL, Vocabulary
from training.capitals import learn_capitals
from training.checkpointing import flattened
from training.config import Recipe, TrainConfig
from training.data import CaptionData, DataError
from training.language.pieces import build_pieces


def inherited(init: Path) -> Recipe:
    """What a recipe leaves out where training starts from the checkpoint `init`: its sizes and kind of vocabulary.

    Name, dropout, search and temperature are the recipe's own choice, so their defaults stand.
    """
    checkpoint, model = open_checkpoint(init), ModelConfig()
    decoder = replace(checkpoint.config.decoder, dropout=model.decoder.dropout)
    model = replace(model, preprocess=checkpoint.config.preprocess, encoder=checkpoint.config.encoder, decoder=decoder)
    return Recipe(model=model, vocabulary=vocabulary_kind(checkpoint.vocabulary))


def vocabulary_kind(vocabulary: Vocabulary) -> Literal["words", "pieces"]:
    return "pieces" if vocabulary.in_pieces else "words"


def initial_captioner(recipe: Recipe, data: CaptionData, init: Path | None, sentences: Sequence[str] = ()) -> Captioner:
    """The captioner to train, as `recipe` says; raises `ConfigError` where the checkpoint `init` is another.

    sentences: without pictures; a fresh captioner, or one that is to `extend`, knows their words too.
    """
    captions = [caption for picture in data.split("train") for caption in picture.captions]
    model = recipe.model
    if (model.preprocess.mean, model.preprocess.std) == (PreprocessConfig().mean, PreprocessConfig().std):
        model = replace(model, preprocess=default_preprocess(model.encoder.name, model.preprocess.size))
    if init is None:
        if recipe.vocabulary == "pieces":
            vocabulary = build_pieces([*captions, *sentences], recipe.pieces, recipe.min_count)
        else:
            vocabulary = Vocabulary.build([*captions, *sentences], recipe.min_count)
        vocabulary = Vocabulary(vocabulary.words, learn_capitals(captions))
        if Path(recipe.encoder_weights).is_dir():
            return with_encoder_of(Path(recipe.encoder_weights), model, vocabulary)
        weights = None if recipe.encoder_weights == "none" else recipe.encoder_weights
        return Captioner(model, vocabulary, weights)
    slots = model.decoder.tag_slots
    captioner = to_train_on(load_captioner(init), encoder_changes=recipe.train_stages > 0 and not slots)
    if slots != captioner.config.decoder.tag_slots:
        captioner = with_slots(captioner, slots)
    sizes = replace(
        captioner.config, name=model.name, version=model.version, search=model.search, temperature=model.temperature,
        decoder=replace(captioner.config.decoder, dropout=model.decoder.dropout),
    )  # fmt: skip
    recipes = replace(sizes, tags=model.tags, things=model.things)  # no recipe names them
    mine = {"vocabulary": recipe.vocabulary, **flattened(asdict(model), "model.")}
    theirs = {"vocabulary": vocabulary_kind(captioner.vocabulary), **flattened(asdict(recipes), "model.")}
    if other := [f"{key} is {mine[key]!r}, there {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]:
        raise ConfigError(f"the recipe conflicts with the checkpoint {init}: {'; '.join(other)}; leave these keys out")
    if recipe.extend and captioner.vocabulary.in_pieces:
        raise ConfigError(f"extend adds words, and the vocabulary of {init} holds pieces of words")
    if recipe.extend:
        new = Vocabulary(Vocabulary.build([*captions, *sentences], recipe.min_count).words, learn_capitals(captions))
        captioner = extended(captioner, new)
    captioner.config = sizes
    captioner.decoder.dropout.p = model.decoder.dropout
    return captioner


def with_encoder_of(folder: Path, model: ModelConfig, vocabulary: Vocabulary) -> Captioner:
    """A fresh captioner with the encoder of a checkpoint; raises `ConfigError` where that is another, or reads others.

    So a decoder of other sizes, or in another language, begins with an encoder that has learnt from captions.
    """
    source = load_captioner(folder)
    for name, mine, theirs in (
        ("model.encoder.name", model.encoder.name, source.config.encoder.name),
        ("model.preprocess.size", model.preprocess.size, source.config.preprocess.size),
    ):
        if mine != theirs:
            raise ConfigError(f"encoder_weights is {str(folder)!r}, whose {name} is {theirs!r}; the recipe has {mine}")
    captioner = Captioner(replace(model, preprocess=source.config.preprocess), vocabulary)
    captioner.encoder.load_state_dict(source.encoder.state_dict())
    return captioner


def to_train_on(captioner: Captioner, encoder_changes: bool) -> Captioner:
    """`captioner` without what was fitted to the weights that training is about to change.

    That is what similar pictures are found by, and the reliability below which a caption needs a review; where the
    encoder changes too, the tags, unless the decoder looks at them. `training.finishing` fits them anew.
    """
    none = ModelConfig()
    captioner.feature = None
    captioner.config = replace(captioner.config, rerank=none.rerank, review_below=none.review_below)
    if encoder_changes:
        captioner.tags = None
        captioner.config = replace(captioner.config, tags=none.tags, things=none.things)
    return captioner


@torch.no_grad()
def with_slots(captioner: Captioner, slots: int) -> Captioner:
    """`captioner` with another number of places for tags; a layer that it then has and had not is yet to be learnt."""
    config = replace(captioner.config, decoder=replace(captioner.config.decoder, tag_slots=slots))
    made = Captioner(config, captioner.vocabulary)
    state, known = made.state_dict(), captioner.state_dict()
    made.load_state_dict({name: known.get(name, value) for name, value in state.items()})
    return made.eval()


@torch.no_grad()
def extended(captioner: Captioner, more: Vocabulary) -> Captioner:
    """`captioner` with those words of `more` that it lacks at the end of its vocabulary; what it says stays the same.

    A new word begins with a random vector and, like a word never seen, hardly any probability.
    """
    known = captioner.vocabulary
    new = {word: written for word, written in more.capitals.items() if word not in known.words}
    vocabulary = Vocabulary(tuple(dict.fromkeys((*known.words, *more.words))), known.capitals | new)
    larger = Captioner(captioner.config, vocabulary)
    state = larger.state_dict()
    for name, value in captioner.state_dict().items():
        if name == "decoder.output_bias":
            state[name].fill_(float(value[len(SPECIAL) :].min()))
        if value.ndim:
            state[name][: len(value)] = value  # only what has a row a word has become longer
        else:
            state[name] = value
    larger.load_state_dict(state)
    return larger.eval()


def load_teachers(
    folders: Sequence[Path], captioner: Captioner, frozen: int, config: TrainConfig, device: torch.device
) -> list[Captioner]:
    """The captioners to learn from, ready to run; `DataError` for one that cannot be fed what is cached here."""
    if bool(folders) != (config.teacher_share > 0):
        raise ConfigError("teachers (--teacher) and train.teacher_share above 0 come together or not at all")
    teachers = [load_captioner(folder).to(device).eval().requires_grad_(False) for folder in folders]
    for folder, teacher in zip(folders, teachers, strict=True):
        if teacher.vocabulary.words != captioner.vocabulary.words:
            raise DataError(f"the teacher {folder} has another vocabulary")
        if teacher.config.preprocess != captioner.config.preprocess:
            raise DataError(f"the teacher {folder} takes other pixels: {teacher.config.preprocess}")
        if not _begin_alike(captioner, teacher, frozen):
            raise DataError(f"the first {frozen} encoder stages of the teacher {folder} are others; train more stages")
        teacher.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teachers


@torch.no_grad()
def _begin_alike(captioner: Captioner, other: Captioner, stages: int) -> bool:
    """Whether the first encoder stages of both give the same, up to float16's rounding.

    Their numbers may differ: a release folds batch norm's scales into the weights (`model.encoder.fold_norms`).
    """
    if stages == 0:
        return True
    if captioner.config.encoder != other.config.encoder:
        return False
    pixels = torch.randint(256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    x = captioner.normalise(pixels.to(captioner.mean.device))
    mine, theirs = (each.encoder.stages[:stages].eval()(x) for each in (captioner, other))
    return float((mine - theirs).abs().max()) <= 0.02 * float(mine.abs().max())
