"""Hugging Face's inference for `image-to-text`: a picture's bytes, or JSON with it as base64, and its captions."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import ConfigDict, Field

from app.compat import protocol
from app.errors import ServiceError
from app.incoming import incoming, parameters


class Generation(protocol.Body):
    """Those of transformers' `generate` that mean something here; others are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    max_new_tokens: int | None = Field(None, ge=1)
    max_length: int | None = Field(None, ge=1)
    num_beams: int | None = Field(None, ge=1)
    num_return_sequences: int | None = Field(None, ge=1)
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class Parameters(Generation):
    """The same, here or in an object of their own, as programs differ."""

    generate_kwargs: Generation | None = None
    generation_parameters: Generation | None = None


class Asked(protocol.Body):
    """`inputs` is a picture as base64 or as a `data:` URL."""

    inputs: str
    parameters: Parameters | None = None


def _shape(error: ServiceError, status: int, request_id: str) -> dict[str, Any]:
    return {"error": error.detail, "error_type": error.code}


router = protocol.router("Hugging Face inference", _shape, {422: 400})
_binary = {"schema": {"type": "string", "format": "binary"}}
_extra = protocol.documented(Asked, **{"image/*": _binary, "application/octet-stream": _binary})


@router.post("/", openapi_extra=_extra)
async def endpoint(request: Request) -> list[dict[str, str]]:
    """As an Inference Endpoint answers at its address: `InferenceClient("http://HOST:PORT").image_to_text(...)`."""
    with incoming(request) as received:
        if not received.is_json:
            form = await received.image()
            answer = await received.caption_one(form.files[0].data, parameters({}))
            return [{"generated_text": answer.caption}]
        body = await received.json()
        asked = protocol.read(Asked, body)
        params = parameters(_search_parameters(request, asked.parameters))
        answer = await received.caption_one(await received.picture(body, asked.inputs), params)
        return [{"generated_text": caption.text} for caption in answer.captions]


@router.post("/models/{model:path}", openapi_extra=_extra)
async def of_model(request: Request, model: str) -> list[dict[str, str]]:
    """As the Inference API answers for one of its models."""
    protocol.check_model(request, model)
    return await endpoint(request)


def _search_parameters(request: Request, asked: Parameters | None) -> dict[str, Any]:
    """The parameters of the search that were asked for, wherever they stand."""
    given: dict[str, Any] = {}
    for part in (asked, asked and asked.generate_kwargs, asked and asked.generation_parameters):
        if part:
            given |= part.model_dump(exclude_none=True, exclude={"generate_kwargs", "generation_parameters"})
    fields = protocol.most_words(request, given.get("max_new_tokens", given.get("max_length")))
    for theirs, ours in {"num_beams": "beam_size", "num_return_sequences": "num_captions"}.items():
        if theirs in given:
            fields[ours] = given[theirs]
    if given.get("do_sample"):
        fields |= {"strategy": "sample"}
        fields |= {name: given[name] for name in ("temperature", "top_p", "seed") if name in given}
    return fields
