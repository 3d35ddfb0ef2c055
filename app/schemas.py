"""The shapes of what goes in and out over HTTP; the OpenAPI document is made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model.caption import Caption, Token
from model.config import (
    MAX_BEAM_SIZE,
    MAX_CAPTIONS,
    MAX_LENGTH,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    MIN_TOP_P,
    SearchConfig,
    Strategy,
)


class CaptionParams(BaseModel):
    """How to caption: the parameters of every way in. What is left out is the model's default."""

    model_config = ConfigDict(extra="forbid")

    num_captions: int | None = Field(
        None,
        ge=1,
        le=MAX_CAPTIONS,
        description="Captions to return, best first, all distinct. Default: the model's.",
    )
    beam_size: int | None = Field(
        None,
        ge=1,
        le=MAX_BEAM_SIZE,
        description="Beams to search with; 1 is greedy. At least as many as captions. Default: the model's.",
    )
    max_length: int | None = Field(
        None, ge=1, le=MAX_LENGTH, description="Most words of a caption. Default: the model's."
    )
    strategy: Strategy | None = Field(
        None, description="`beam` finds the most probable caption, `sample` draws. Default: the model's."
    )
    temperature: float | None = Field(
        None,
        ge=MIN_TEMPERATURE,
        le=MAX_TEMPERATURE,
        allow_inf_nan=False,
        description="Sampling only: above 1 more varied, below 1 safer. Default: the model's.",
    )
    top_p: float | None = Field(
        None,
        ge=MIN_TOP_P,
        le=1,
        allow_inf_nan=False,
        description="Sampling only: draw from the likeliest words of this mass. Default: the model's.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="Sampling only: a picture and a seed draw the same captions, whatever other pictures come with it; "
        "the same picture twice gets the same twice. Default: the model's, or a fresh one for each picture.",
    )
    explain: bool = Field(False, description="Say for each word what it nearly was and what the model looked at.")

    def search(self, default: SearchConfig) -> SearchConfig:
        """These parameters over the model's `default`."""
        given = self.model_dump(exclude_none=True, exclude={"explain"})
        config = replace(default, **given)
        if config.strategy == "beam":
            # As many captions need as many beams. Sampling's settings mean nothing here: equal ones share a batch.
            plain = SearchConfig(num_captions=config.num_captions)
            config = replace(
                config,
                beam_size=max(config.beam_size, config.num_captions),
                temperature=plain.temperature,
                top_p=plain.top_p,
                seed=None,
            )
        return config


class AlternativeOut(BaseModel):
    """A word the decoder nearly chose."""

    text: str
    probability: float = Field(ge=0, le=1)


class AttentionOut(BaseModel):
    """Where the decoder looked: a grid over the picture, top left first."""

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    weights: list[float] = Field(description="rows x columns weights, row after row; with `sentinel` they sum to 1.")
    sentinel: float = Field(ge=0, description="Weight of looking nowhere: the language alone decided.")


class TokenOut(BaseModel):
    """One decision of the decoder: a word, or "." for the end of the caption."""

    text: str = Field(
        description='The word; of a model that writes in pieces of words a piece, "##board" going on with the last.'
    )
    probability: float = Field(ge=0, le=1)
    alternatives: list[AlternativeOut] | None = Field(None, description="With `explain`: other words, likeliest first.")
    attention: AttentionOut | None = Field(
        None,
        description="With `explain`: where the decoder looked. A model without attention, which sees the picture "
        "once, before the first word, has none.",
    )
    gates: list[dict[str, float]] | None = Field(
        None,
        description="With `explain`: for each recurrent layer, bottom first, the mean activation of each gate in "
        "(0, 1), and the root mean square of `candidate`, `state` and `hidden`.",
    )


class CaptionOut(BaseModel):
    """One sentence about the picture."""

    text: str
    confidence: float = Field(ge=0, le=1, description="Geometric mean of the tokens' probabilities.")
    log_probability: float = Field(le=0, description="Natural logarithm of the product of the tokens' probabilities.")
    tokens: list[TokenOut]


class ModelRef(BaseModel):
    """Which model answered."""

    name: str
    version: str


class ImageOut(BaseModel):
    """The picture as it was read."""

    width: int = Field(ge=1, description="Pixels, after the EXIF orientation.")
    height: int = Field(ge=1, description="Pixels, after the EXIF orientation.")
    format: str = Field(description="JPEG, PNG, WEBP, AVIF, HEIF, GIF, BMP or TIFF.")


class Timing(BaseModel):
    """Milliseconds spent in each stage; `total` runs from the request's headers to the answer."""

    queue: float = Field(ge=0, description="Waiting for a decoding thread and for a batch.")
    decode: float = Field(ge=0, description="Reading the file and shrinking it to the model's input.")
    encode: float = Field(ge=0, description="The CNN, shared by the batch.")
    generate: float = Field(ge=0, description="The decoder and its search, shared by the batch.")
    total: float = Field(ge=0)


class CaptionResponse(BaseModel):
    """The answer of `POST /caption`."""

    caption: str = Field(description="The best caption.")
    confidence: float = Field(ge=0, le=1, description="Its confidence.")
    captions: list[CaptionOut] = Field(min_length=1, description="Best first, distinct.")
    model: ModelRef
    image: ImageOut
    timing_ms: Timing
    request_id: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it; `code` is stable and meant for programs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class Result(BaseModel):
    """One picture of `POST /captions`: either its captions or its error."""

    filename: str
    result: CaptionResponse | None = None
    error: Problem | None = None


class Line(Result):
    """A line of `POST /captions` with `Accept: application/x-ndjson`: a picture's result as soon as it is there."""

    index: int = Field(ge=0, description="The picture's place among those that were sent, from 0.")


class CaptionsResponse(BaseModel):
    """The answer of `POST /captions`, in the order the pictures were sent."""

    results: list[Result]
    request_id: str


class Health(BaseModel):
    """`ok`, where the answer is 200."""

    status: Literal["ok"] = "ok"


class ServiceOut(BaseModel):
    """The software that serves it."""

    version: str
    commit: str | None = Field(None, description="What it was built from, where that is known: `CAPTION_COMMIT`.")


class ModelResponse(BaseModel):
    """The model being served."""

    name: str
    version: str
    engine: str
    device: str
    search: dict[str, Any] = Field(description="The search defaults, chosen on validation.")
    limits: dict[str, float] = Field(description="What the service accepts.")
    card: dict[str, Any] = Field(description="The model card's facts: data, terms, recipe, metrics, limits.")
    service: ServiceOut


def caption_out(caption: Caption) -> CaptionOut:
    """`caption` as it goes out."""
    return CaptionOut(
        text=caption.text,
        confidence=caption.confidence,
        # A probability rounded above 1 in float32 must not make a logarithm above 0.
        log_probability=min(caption.log_probability, 0.0),
        tokens=[_token_out(token) for token in caption.tokens],
    )


def _token_out(token: Token) -> TokenOut:
    why = token.explanation
    if why is None:
        return TokenOut(text=token.text, probability=_probability(token.probability))
    return TokenOut(
        text=token.text,
        probability=_probability(token.probability),
        alternatives=[AlternativeOut(text=a.text, probability=_probability(a.probability)) for a in why.alternatives],
        attention=None if why.attention is None else _attention_out(why.attention, why.sentinel),
        gates=[_floats(layer) for layer in why.layers],
    )


def _attention_out(weights: NDArray[np.float32], sentinel: float) -> AttentionOut:
    rows, columns = weights.shape
    rounded = weights.ravel().astype(np.float64).round(6).tolist()
    return AttentionOut(rows=rows, columns=columns, weights=rounded, sentinel=sentinel)


def _floats(layer: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in layer.items()}


def _probability(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the engine returned a probability that is not a number")
    return min(max(float(value), 0.0), 1.0)


def timing(queue: float, decode: float, encode: float, generate: float, total: float) -> Timing:
    """Seconds -> milliseconds, to a microsecond."""
    values: Sequence[float] = (queue, decode, encode, generate, total)
    queue, decode, encode, generate, total = (round(1000 * v, 3) for v in values)
    return Timing(queue=queue, decode=decode, encode=encode, generate=generate, total=total)
