"""Every size and choice of a captioner, as frozen dataclasses; a checkpoint stores exactly these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from model.errors import ConfigError

CellKind = Literal["rnn", "lstm", "lstm-peephole", "gru"]
Strategy = Literal["beam", "sample"]

MAX_BEAM_SIZE = 10
MAX_CAPTIONS = 5
MAX_LENGTH = 50
MAX_AVOIDED = 100
# Sampling at the lower ends is greedy already; below them float32 cannot hold what is divided or compared.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 10.0
MIN_TOP_P = 1e-6


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """How a picture becomes the encoder's input: stretched to a square, then (x - mean) / std."""

    size: int = 224  # pixels, height = width
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)  # of 0-255 pixel values, RGB
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Which CNN turns the picture into a grid of region features."""

    name: str = "efficientnet_lite0"


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of the one-to-many decoder."""

    cell: CellKind = "lstm"
    embed_size: int = 256  # word vectors
    tied: bool = True  # the output layer compares with the word vectors themselves; false: with vectors of its own
    layers: Literal[1, 2] = 2  # recurrent layers; 1: the output reads the layer that asked the attention
    hidden_size: int = 512  # state of each recurrent layer
    attention_heads: int = 4  # heads of the dot-product attention over the regions; 0: none, and a plain one-to-many
    # network, which sees the picture once, in layer 1's first state
    sentinel: bool = False  # adaptive attention: a learned extra "region" for words that need no look
    tag_slots: int = 0  # so many of the likeliest tags are further places to look at, beside the regions
    feed_attention: bool = False  # layer 1 reads what the step before attended to, beside the word
    dropout: float = 0.3  # on word vectors, states and the output, in training only

    def __post_init__(self) -> None:
        _check(self.attention_heads >= 0, "attention_heads must be 0 or more")
        _check(self.tag_slots >= 0, "tag_slots must be 0 or more")
        for switch in ("sentinel", "tag_slots", "feed_attention"):
            _check(
                self.attention_heads > 0 or not getattr(self, switch),
                f"{switch} needs attention_heads of 1 or more: without attention there is nothing to look at",
            )


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """How captions are searched for; the defaults a checkpoint stores are chosen on validation."""

    strategy: Strategy = "beam"
    beam_size: int = 3  # 1 is greedy
    num_captions: int = 1
    max_length: int = 20  # tokens (words, or pieces of words where the vocabulary holds these), the end not counted
    length_penalty: float = 0.7  # score = log-probability / tokens ** length_penalty
    block_ngram: int = 3  # no n-gram of tokens of this size twice; 0 switches it off
    temperature: float = 1.0  # sampling only
    top_p: float = 1.0  # sampling only
    seed: int | None = None  # sampling only, every picture's; None: a fresh one for each picture
    min_length: int = 0  # tokens, the end not counted
    avoid: tuple[str, ...] = ()  # words, or words in a row, that no caption has; `MAX_AVOIDED` of them
    start_with: str = ""  # the words that every caption begins with

    def __post_init__(self) -> None:
        _check(self.strategy in ("beam", "sample"), f"strategy must be beam or sample, not {self.strategy!r}")
        _check(1 <= self.beam_size <= MAX_BEAM_SIZE, f"beam_size must be 1 to {MAX_BEAM_SIZE}")
        most = max(MAX_CAPTIONS, self.beam_size)  # a beam's own hypotheses may all be wanted, to be ranked anew
        _check(1 <= self.num_captions <= most, f"num_captions must be 1 to {most}")
        _check(1 <= self.max_length <= MAX_LENGTH, f"max_length must be 1 to {MAX_LENGTH}")
        _check(self.block_ngram >= 0, "block_ngram must be 0 or more")
        _check(0 <= self.length_penalty < math.inf, "length_penalty must be 0 or more")
        _check(
            MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE,
            f"temperature must be {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
        )
        _check(MIN_TOP_P <= self.top_p <= 1, f"top_p must be {MIN_TOP_P:g} to 1")
        _check(self.seed is None or self.seed >= 0, "seed must be 0 or more")
        _check(
            0 <= self.min_length <= self.max_length,
            f"min_length must be 0 to max_length, which is {self.max_length}",
        )
        _check(len(self.avoid) <= MAX_AVOIDED, f"avoid must have {MAX_AVOIDED} entries at most")


@dataclass(frozen=True, slots=True)
class RerankConfig:
    """How the candidates of a search are put in order; fitted on validation when a checkpoint is released.

    score = consensus with the captions of similar pictures + search * the search's own score
            + tags * mean log-odds of the tags among the caption's words
            + things * sum of the log-odds of the things among them
    """

    size: int = 0  # dimensions of the feature that similar pictures are found by; 0: the search's own order stays
    neighbours: int = 20  # similar pictures asked
    search: float = 1.0
    tags: float = 0.0
    things: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole captioner."""

    name: str = "captioner"
    version: str = "0"
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    rerank: RerankConfig = field(default_factory=RerankConfig)
    tags: tuple[str, ...] = ()  # words that the tag head looks for in a picture
    things: tuple[str, ...] = ()  # those of the tags that are things: a caption that names one claims that it is there
    review_below: float = 0.0  # captions less reliable than this want a look by a person (`Caption.reliability`)
    temperature: float = 1.0  # divides the logits so that probabilities are calibrated (fitted on validation)


T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the config dataclass `cls` from nested mappings, its defaults for the rest; see `override`."""
    return override(cls(), values)


def override(config: T, values: Mapping[str, Any], where: str = "") -> T:
    """`config` with the nested `values` put in; unknown keys and values of a wrong type raise `ConfigError`."""
    hints = get_type_hints(type(config))
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"unknown key {where}{key!r}; known keys: {', '.join(sorted(hints))}")
        old, hint = getattr(config, key), hints[key]
        if is_dataclass(old) and isinstance(value, Mapping):
            value = override(old, value, f"{where}{key}.")
        elif isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hint):
            wanted = " or ".join(map(repr, get_args(hint))) if get_origin(hint) is Literal else hint
            raise ConfigError(f"{where}{key} must be {getattr(wanted, '__name__', wanted)}, not {value!r}")
        made[key] = value
    return replace(config, **made)  # type: ignore[type-var]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON or TOML may stand where `hint` is declared."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)  # true is no 1
    if get_origin(hint) is tuple:
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(value) if isinstance(value, tuple) else arguments
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if get_origin(hint) is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(one, arguments[1]) for key, one in value.items()
        )
    if arguments:  # int | None
        return any(_fits(value, argument) for argument in arguments)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
