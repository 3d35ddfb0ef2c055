"""Ollama's generate and chat about one picture, in words that stream unless told not to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from app.compat import ollama_models, protocol
from app.compat.ollama_models import shape
from app.errors import BadParameter, NotSupported
from app.incoming import incoming, parameters
from app.json_body import JsonBody
from app.schemas import CaptionResponse, ModelRef


class Options(protocol.Body):
    """Those of a language model's options that mean something here."""

    num_predict: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class Generate(protocol.Body):
    """A prompt, which is ignored, and a picture."""

    model: str
    prompt: str | None = None
    images: list[str] | None = None
    stream: bool | None = None
    options: Options | None = None


class Message(protocol.Body):
    role: str
    content: str | None = None
    images: list[str] | None = None


class Chat(protocol.Body):
    """Messages, the last one with pictures having one; texts are ignored."""

    model: str
    messages: list[Message] = Field(default_factory=list)
    stream: bool | None = None
    options: Options | None = None


router = protocol.router("Ollama", shape, {422: 400})
router.include_router(ollama_models.router)


@router.post("/api/generate", response_class=JSONResponse, openapi_extra=protocol.documented(Generate))
async def generate(request: Request) -> Response:
    """Caption the picture in `images`; without one and without a prompt say that the model is loaded."""
    with incoming(request) as received:
        body = await received.json()
        asked = protocol.read(Generate, body)
        model = protocol.check_model(request, asked.model)
        _refuse(body, model)
        if not asked.images and not asked.prompt:
            return JSONResponse({**_head(asked.model), "response": "", "done": True, "done_reason": "load"})
        fields = parameters(_search_parameters(request, asked.options))
        answer = await received.caption_one(await received.picture(body, _only(asked.images)), fields)
    note = {"note": protocol.NOTE} if asked.prompt else {}
    return _answer(asked.model, answer, asked.stream, note, lambda text: {"response": text})


@router.post("/api/chat", response_class=JSONResponse, openapi_extra=protocol.documented(Chat))
async def chat(request: Request) -> Response:
    """Caption the picture of the last message that has one."""
    with incoming(request) as received:
        body = await received.json()
        asked = protocol.read(Chat, body)
        model = protocol.check_model(request, asked.model)
        _refuse(body, model)
        if not asked.messages:
            message = {"role": "assistant", "content": ""}
            return JSONResponse({**_head(asked.model), "message": message, "done": True, "done_reason": "load"})
        images = next((message.images for message in reversed(asked.messages) if message.images), None)
        fields = parameters(_search_parameters(request, asked.options))
        answer = await received.caption_one(await received.picture(body, _only(images)), fields)
    note = {"note": protocol.NOTE} if any(message.content for message in asked.messages) else {}
    return _answer(
        asked.model, answer, asked.stream, note, lambda text: {"message": {"role": "assistant", "content": text}}
    )


def _refuse(body: JsonBody, model: ModelRef) -> None:
    for name, what in (("tools", "tools"), ("think", "thinking"), ("suffix", "insert"), ("format", "a format")):
        if body.value.get(name):
            raise NotSupported(f"{model.name!r} does not support {what}")


def _only(images: list[str] | None) -> str:
    if not images:
        raise BadParameter("images: a picture is needed; this model answers with its caption")
    if len(images) > 1:
        raise NotSupported("one picture a request: this model does not compare pictures")
    return images[0]


def _search_parameters(request: Request, options: Options | None) -> dict[str, Any]:
    given = options or Options()
    words = protocol.most_words(request, given.num_predict)
    return {**words, **protocol.sampling(given.temperature, given.top_p, given.seed)}


def _head(model: str) -> dict[str, str]:
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _answer(model: str, answer: CaptionResponse, stream: bool | None, note: dict[str, str], shape: Any) -> Response:
    """One object, or a line for each word and one for the end."""
    head, timing = _head(model), answer.timing_ms
    nanoseconds = {
        "total_duration": timing.total, "load_duration": 0.0,
        "prompt_eval_duration": timing.decode + timing.encode, "eval_duration": timing.generate,
    }  # fmt: skip
    end = {name: round(1e6 * ms) for name, ms in nanoseconds.items()}
    end |= {"prompt_eval_count": 0, "eval_count": len(answer.captions[0].tokens)}
    last = {"done": True, "done_reason": protocol.ended(answer), **end, **note}
    if stream is False:
        return JSONResponse({**head, **shape(answer.caption), **last})

    def lines() -> Iterator[dict[str, Any]]:
        for piece in protocol.pieces(answer.caption):
            yield {**head, **shape(piece), "done": False}
        yield {**head, **shape(""), **last}

    return Response("".join(json.dumps(line) + "\n" for line in lines()), media_type="application/x-ndjson")
