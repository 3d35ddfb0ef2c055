"""Everything a training run can be told, as frozen dataclasses; a recipe is a TOML file of overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from model.config import MAX_CAPTIONS, ModelConfig, override
from model.errors import ConfigError
from training.augment import AugmentConfig


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How the weights are fitted."""

    objective: Literal["likelihood", "cider"] = "likelihood"  # cider: self-critical sequence training
    epochs: int = 20
    min_steps: int = 0  # a set too small to come to so many steps gets more epochs, and patience in proportion
    batch_size: int = 32  # pictures; each comes with `captions_per_picture` captions
    captions_per_picture: int = 5
    max_words: int = 20  # longer captions are taught so far and no end; in pieces where the vocabulary holds these
    learning_rate: float = 1e-3  # peak, of the decoder
    encoder_learning_rate: float = 1e-4  # peak, of the last encoder stage that is trained
    encoder_decay: float = 0.7  # each stage before it learns by this factor slower
    drop_path: float = 0.0  # how often a block of the trained stages is left out for a picture (stochastic depth)
    batch_norm: Literal["kept", "learnt"] = "kept"  # statistics of the trained stages; learnt: when from scratch
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps, or from 1 on so many; then a cosine down to a twentieth of the peak
    clip: float = 5.0  # gradient norm
    label_smoothing: float = 0.1
    scheduled_sampling: float = 0.0  # at the last epoch this share of input words is the model's own
    average: float = 0.0  # decay of the exponential moving average of the weights; 0 switches it off
    samples: int = 5  # candidates a picture for the cider objective
    candidates: Literal["drawn", "beam"] = "drawn"  # from the model's probabilities, or those that beam search finds
    object_weight: float = 0.0  # cider: what an object that a reference names adds, and any other takes away
    bleu_weight: float = 0.0  # cider: what BLEU-4 of the sentence, 0 to 1, adds
    likelihood_weight: float = 0.0  # cider: the likelihood loss is added with this weight, which keeps words calibrated
    teacher_share: float = 0.0  # of the likelihood loss that follows the teachers' probabilities, not the words said
    patience: int = 5  # epochs without a better validation CIDEr before stopping
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the processor has it
    seed: int = 0
    save_every: float = 120.0  # seconds between saves within an epoch

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.min_steps < 0 or self.warmup < 0:
            raise ConfigError("train.epochs must be at least 1, train.min_steps and train.warmup not negative")
        if self.objective == "cider" and self.samples < 2:
            raise ConfigError("train.samples must be at least 2: each sample's baseline is the mean of the others")
        if self.candidates == "beam" and (self.objective != "cider" or self.samples > MAX_CAPTIONS):
            raise ConfigError(f"train.candidates = 'beam' is for the cider objective, with at most {MAX_CAPTIONS}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training run."""

    name: str = "captioner"
    model: ModelConfig = field(default_factory=ModelConfig)
    encoder_weights: str = "imagenet"  # or a file, or a checkpoint's folder, or "none"
    train_stages: int = 0  # how many of the encoder's last stages are trained; what enters them is cached
    views: int = 1  # cached views a picture: itself, then augmented ones (with every stage trained: ignored)
    vocabulary: Literal["words", "pieces"] = "words"  # pieces of words are learnt by merging letters
    pieces: int = 2000  # how many of them
    min_count: int = 5  # how often a word, or with pieces a letter, must occur to be learnt
    extend: bool = False  # with --init: words that the captions add are learnt beside those of the checkpoint
    # Set -> how often an epoch visits each of its pictures; 1 where not named.
    visits: Mapping[str, float] = field(default_factory=dict, hash=False)
    # Set -> its weight in the CIDEr that the best epoch has most of; without any the first set decides alone.
    choose: Mapping[str, float] = field(default_factory=dict, hash=False)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if any(visits < 0 for visits in self.visits.values()):
            raise ConfigError("visits must not be negative")
        if any(weight < 0 for weight in self.choose.values()) or (self.choose and not sum(self.choose.values())):
            raise ConfigError("the weights in choose must not be negative, nor all 0")


RECIPES = Path(__file__).parent / "recipes"


def find_recipe(name: str, base: Recipe | None = None) -> Recipe:
    """The recipe of that name in training/recipes, or in the file of that path; `base` gives what it leaves out."""
    named = RECIPES / f"{name}.toml"
    path = named if named.is_file() else Path(name)
    return read_recipe(path, replace(base or Recipe(), name=path.stem))


def read_recipe(path: Path, base: Recipe | None = None) -> Recipe:
    """The recipe in a TOML file; unknown keys, wrong values and malformed files raise `ConfigError`."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    return override(base or Recipe(name=path.stem), values)


def set_weight(text: str) -> tuple[str, float]:
    """A command's argument SET=WEIGHT, as the tables `choose` and `visits` of a recipe have them."""
    name, _, value = text.rpartition("=")
    return name, float(value)
