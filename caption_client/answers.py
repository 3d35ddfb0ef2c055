"""What the service answers, as plain values; fields that a newer service adds are passed over."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Alternative:
    """A word the decoder nearly chose."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Attention:
    """Where the decoder looked: rows x columns weights, top left first; with `sentinel` and `tags` they sum to 1."""

    rows: int
    columns: int
    weights: list[float]
    sentinel: float
    tags: float = 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """One decision of the decoder: a word, or "." for the end; what is None was not asked for (`explain`)."""

    text: str
    probability: float
    alternatives: list[Alternative] | None = None
    attention: Attention | None = None
    gates: list[dict[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about the picture; `confidence` is the geometric mean of its tokens' probabilities.

    support: probability that all things it names are there; None where the model cannot tell.
    """

    text: str
    confidence: float
    log_probability: float
    tokens: list[Token]
    support: float | None = None


@dataclass(frozen=True, slots=True)
class Tag:
    """A word that people would use of the picture."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Model:
    """Which model answered."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Image:
    """The picture as it was read: pixels after the EXIF orientation."""

    width: int
    height: int
    format: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds spent in each stage."""

    queue: float
    decode: float
    encode: float
    generate: float
    total: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one picture; `caption` and `confidence` are those of the best of `captions`.

    alt: fit to be alternative text, empty for a `decorative` picture. review: whether a person should look at it.
    tags: likeliest first, None of a model without (as is what a service of before does not say).
    """

    caption: str
    confidence: float
    captions: list[Caption]
    model: Model
    image: Image
    timing_ms: Timing
    request_id: str
    alt: str = ""
    review: bool = False
    decorative: bool = False
    tags: list[Tag] | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """An error, as RFC 9457 has it; `code` is stable and meant for programs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Result:
    """One picture of several: either its captions or its error."""

    filename: str
    result: Answer | None = None
    error: Problem | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """The answer for several pictures, in the order they were sent."""

    results: list[Result]
    request_id: str


def read(kind: type[T], value: object) -> T:
    """A dataclass of this `kind` from decoded JSON; raises `ValueError` for what is none."""
    return cast(T, _read(kind, value))


def plain(value: Any) -> dict[str, Any]:
    """A dataclass of this module as what JSON can hold, without what is None."""
    return asdict(value, dict_factory=lambda items: {name: item for name, item in items if item is not None})


_hints = cache(get_type_hints)


def _read(hint: Any, value: object) -> object:
    if isinstance(hint, UnionType):  # X | None
        kind, none = get_args(hint)
        assert none is NoneType
        return None if value is None else _read(kind, value)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        missing = [field.name for field in fields(hint) if field.default is MISSING and field.name not in value]
        if missing:
            raise ValueError(f"no {missing[0]} in it")
        hints = _hints(hint)
        given = {field.name: value[field.name] for field in fields(hint) if field.name in value}
        return hint(**{name: _read(hints[name], item) for name, item in given.items()})
    if get_origin(hint) is list and isinstance(value, list):
        return [_read(get_args(hint)[0], item) for item in value]
    if get_origin(hint) is dict and isinstance(value, dict):
        return {str(name): _read(get_args(hint)[1], item) for name, item in value.items()}
    if hint is float and isinstance(value, int | float):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise ValueError(f"{value!r:.50} where {getattr(hint, '__name__', hint)} is expected")
