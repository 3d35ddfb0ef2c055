"""The shapes of what goes in and out over HTTP; the OpenAPI document is made from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.alt import MAX_ALT
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
from model.wording import neutral

Wording = Literal["as-said", "gender-neutral"]
MAX_TAGS, TAGS = 50, 10


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
    min_length: int | None = Field(
        None, ge=0, le=MAX_LENGTH, description="Fewest words of a caption. Default: the model's."
    )
    avoid: str | None = Field(
        None,
        max_length=2000,
        description="Words that no caption has, between commas: `dog,hot dog`. Other forms of a word are other words.",
    )
    start_with: str | None = Field(
        None, max_length=500, description="Words that every caption begins with: `a photo of`."
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
    wording: Wording = Field(
        "as-said",
        description="`gender-neutral`: 'a person' and 'their' for what an English caption guesses about gender; "
        "captions that are the same then come once. Tokens stay what the model said.",
    )
    num_tags: int = Field(
        TAGS, ge=0, le=MAX_TAGS, description="Most tags to return, of a model that has tags; 0 for none."
    )

    def search_config(self, default: SearchConfig) -> SearchConfig:
        """These parameters over the model's `default`; raises `ConfigError` for those that do not go together."""
        given = self.model_dump(exclude_none=True, exclude=_NOT_SEARCHED)
        if self.avoid is not None:
            given["avoid"] = tuple(words.strip() for words in self.avoid.split(",") if words.strip())
        if self.start_with is not None:
            given["start_with"] = self.start_with.strip()
        if "max_length" in given and "min_length" not in given:
            given["min_length"] = min(default.min_length, given["max_length"])
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


_NOT_SEARCHED = {"explain", "wording", "num_tags"}  # parameters that change nothing about the search


class AlternativeOut(BaseModel):
    """A word the decoder nearly chose."""

    text: str
    probability: float = Field(ge=0, le=1)


class AttentionOut(BaseModel):
    """Where the decoder looked: a grid over the picture, top left first."""

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    weights: list[float] = Field(
        description="rows x columns weights, row after row; with `sentinel` and `tags` they sum to 1."
    )
    sentinel: float = Field(ge=0, description="Weight of looking nowhere: the language alone decided.")
    tags: float = Field(0.0, ge=0, description="Weight of the likeliest tags; 0 where the model does not look at them.")


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
    support: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Probability, by the model's tags, that all things the caption names are there; null where it "
        "names none that the tags know, or the model has no tags.",
    )


class TagOut(BaseModel):
    """A word that people would use of the picture."""

    text: str
    probability: float = Field(ge=0, le=1, description="That some of five people who describe the picture use it.")


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
    alt: str = Field(
        "",
        max_length=MAX_ALT,
        description="The best caption as alternative text: one plain sentence, without 'a picture of'; empty, as HTML "
        "wants it, for a decorative picture.",
    )
    review: bool = Field(
        False,
        description="Whether a person should look at it: the best caption's support (its confidence, where it has "
        "none) is below what the model's makers chose, or the picture shows nothing.",
    )
    decorative: bool = Field(
        False, description="Whether the picture shows nothing: it is blank, a gradient, a rule or noise."
    )
    tags: list[TagOut] | None = Field(
        None, description="The likeliest tags, likeliest first; absent where the model has none."
    )


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
    precision: str = Field(description="The numbers that the encoder computes with: int8, bf16 or f32.")
    search: dict[str, Any] = Field(description="The search defaults, chosen on validation.")
    limits: dict[str, float] = Field(description="What the service accepts.")
    card: dict[str, Any] = Field(description="The model card's facts: data, terms, recipe, metrics, limits.")
    service: ServiceOut


def caption_out(caption: Caption, wording: Wording = "as-said") -> CaptionOut:
    """`caption` as it goes out."""
    return CaptionOut(
        text=worded(caption.text, wording),
        confidence=caption.confidence,
        # A probability rounded above 1 in float32 must not make a logarithm above 0.
        log_probability=min(caption.log_probability, 0.0),
        tokens=[_token_out(token) for token in caption.tokens],
        support=caption.support,
    )


def captions_out(captions: Sequence[Caption], wording: Wording = "as-said") -> list[CaptionOut]:
    """Captions as they go out, best first, distinct also in other words than the model's."""
    out: dict[str, CaptionOut] = {}
    for caption in captions:
        one = caption_out(caption, wording)
        out.setdefault(one.text, one)
    return list(out.values())


def worded(text: str, wording: Wording) -> str:
    """A caption or a tag in the words that are asked for."""
    return neutral(text) if wording == "gender-neutral" else text


def tags_out(
    names: Sequence[str], probabilities: NDArray[np.float32], count: int, wording: Wording = "as-said"
) -> list[TagOut] | None:
    """The `count` likeliest of the model's tags `names`, with `probabilities` (G,); None of a model without."""
    if not names or not count:
        return None
    out: dict[str, TagOut] = {}
    for i in np.argsort(-probabilities, kind="stable").tolist():
        tag = TagOut(text=worded(names[i], wording), probability=_probability(round(float(probabilities[i]), 4)))
        out.setdefault(tag.text, tag)  # two that are one in other words are at least as likely as the likelier one
        if len(out) == count:
            break
    return list(out.values())


def _token_out(token: Token) -> TokenOut:
    why = token.explanation
    if why is None:
        return TokenOut(text=token.text, probability=_probability(token.probability))
    return TokenOut(
        text=token.text,
        probability=_probability(token.probability),
        alternatives=[AlternativeOut(text=a.text, probability=_probability(a.probability)) for a in why.alternatives],
        attention=None if why.attention is None else _attention_out(why.attention, why.sentinel, why.tags),
        gates=[{name: float(value) for name, value in layer.items()} for layer in why.layers],
    )


def _attention_out(weights: NDArray[np.float32], sentinel: float, tags: float) -> AttentionOut:
    rows, columns = weights.shape
    rounded = weights.ravel().astype(np.float64).round(6).tolist()
    return AttentionOut(rows=rows, columns=columns, weights=rounded, sentinel=sentinel, tags=tags)


def _probability(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the engine returned a probability that is not a number")
    return min(max(float(value), 0.0), 1.0)


def timing(queue: float, decode: float, encode: float, generate: float, total: float) -> Timing:
    """Seconds -> milliseconds, to a microsecond."""
    values: Sequence[float] = (queue, decode, encode, generate, total)
    queue, decode, encode, generate, total = (round(1000 * v, 3) for v in values)
    return Timing(queue=queue, decode=decode, encode=encode, generate=generate, total=total)
