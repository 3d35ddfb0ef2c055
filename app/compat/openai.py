"""OpenAI's chat completions about one picture: its caption is what the assistant says, at once or as a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from app.compat import protocol
from app.errors import BadParameter, NotSupported, ServiceError
from app.incoming import incoming, parameters
from app.schemas import CaptionResponse, ModelRef

TYPES = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}
# What changes the answer and cannot be done here; each is allowed to say that it is not wanted.
REFUSED = ("tools", "functions", "stop", "logit_bias", "logprobs", "audio", "presence_penalty", "frequency_penalty")


class Url(protocol.Body):
    url: str


class Part(protocol.Body):
    """A part of a message: text, or a picture."""

    type: str
    text: str | None = None
    image_url: Url | None = None


class Message(protocol.Body):
    role: str
    content: str | list[Part] | None = None


class StreamOptions(protocol.Body):
    include_usage: bool = False


class Format(protocol.Body):
    type: Literal["text"]


class Asked(protocol.Body):
    """A chat whose last message with pictures has one; texts are ignored."""

    model: str
    messages: list[Message] = Field(min_length=1)
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    response_format: Format | None = None


def _shape(error: ServiceError, status: int, request_id: str) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = {"unknown_model": "model_not_found", "unauthorized": "invalid_api_key"}.get(error.code, error.code)
    return {"error": {"message": error.detail, "type": kind, "param": None, "code": code}}


router = protocol.router("OpenAI", _shape, {415: 400, 422: 400})


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model(protocol.check_model(request, None))]}


@router.get("/v1/models/{model}")
async def model(request: Request, model: str) -> dict[str, Any]:
    """That model, by its name."""
    return _model(protocol.check_model(request, model))


@router.post("/v1/chat/completions", response_class=JSONResponse, openapi_extra=protocol.documented(Asked))
async def complete(request: Request) -> Response:
    """Caption the picture of the last message that has one; what the messages say is ignored."""
    with incoming(request) as received:
        body = await received.json()
        asked = protocol.read(Asked, body)
        served = protocol.check_model(request, asked.model)
        for name in REFUSED:
            if body.value.get(name):
                raise NotSupported(f"{name}: this model captions pictures and cannot do that")
        most = asked.max_completion_tokens or asked.max_tokens
        fields = {
            **({"num_captions": asked.n} if asked.n else {}),
            **protocol.most_words(request, most),
            **protocol.sampling(asked.temperature, asked.top_p, asked.seed),
        }
        answer = await received.caption_one(await received.picture(body, _picture(asked.messages)), parameters(fields))
    prompted = any(isinstance(m.content, str) or any(p.text for p in m.content or ()) for m in asked.messages)
    head = {"id": f"chatcmpl-{answer.request_id}", "created": int(time.time()), "model": served.name}
    head |= {"note": protocol.NOTE} if prompted else {}
    words = sum(len(caption.tokens) for caption in answer.captions)
    usage = {"prompt_tokens": 0, "completion_tokens": words, "total_tokens": words}
    if asked.stream:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        lines = [f"data: {json.dumps(event)}\n\n" for event in _events(answer, head, usage if with_usage else None)]
        return Response("".join([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")
    choices = [
        {
            "index": n,
            "message": {"role": "assistant", "content": caption.text, "refusal": None},
            "logprobs": None,
            "finish_reason": protocol.ended(answer, n),
        }
        for n, caption in enumerate(answer.captions)
    ]
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage})


def _model(model: ModelRef) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "caption-service", "version": model.version}


def _picture(messages: list[Message]) -> str:
    """The picture of the last message that has any."""
    for message in reversed(messages):
        parts = message.content if isinstance(message.content, list) else []
        if unknown := {part.type for part in parts} - {"text", "image_url"}:
            raise NotSupported(f"a part of type {min(unknown)[:50]!r} cannot be read; text and image_url can")
        if pictures := [part.image_url for part in parts if part.type == "image_url"]:
            if len(pictures) > 1:
                raise NotSupported("one picture a request: this model does not compare pictures")
            if pictures[0] is None:
                raise BadParameter("messages: a part of type image_url has no image_url")
            return pictures[0].url
    raise BadParameter("messages: there is no picture in them; a part of type image_url holds one")


def _events(answer: CaptionResponse, head: dict[str, Any], usage: dict[str, int] | None) -> Iterator[dict[str, Any]]:
    """What a stream says: who speaks, each word, the end, and on request the usage."""
    head = {**head, "object": "chat.completion.chunk"} | ({"usage": None} if usage else {})

    def event(n: int, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": n, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    for n, caption in enumerate(answer.captions):
        yield event(n, {"role": "assistant", "content": ""})
        for piece in protocol.pieces(caption.text):
            yield event(n, {"content": piece})
        yield event(n, {}, protocol.ended(answer, n))
    if usage:
        yield {**head, "choices": [], "usage": usage}
