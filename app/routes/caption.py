"""POST /caption and POST /captions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import BadParameter, ServiceError, problem
from app.incoming import Incoming, incoming, parameters
from app.pictures import uploads
from app.routes.problems import problems
from app.schemas import CaptionParams, CaptionResponse, CaptionsResponse, Line, Problem, Result

router = APIRouter(tags=["captions"])
Params = Annotated[CaptionParams, Query()]

NDJSON = "application/x-ndjson"
_FILE = {"type": "string", "format": "binary"}


_JSON_PICTURE = {
    "type": "string",
    "description": "Base64, a `data:` URL of it, or a URL of a host in `CAPTION_FETCH_HOSTS`.",
}


def _form(names: tuple[str, ...], schema: dict[str, Any]) -> dict[str, Any]:
    """The first of `names`, which programs may call by the others, and the parameters of the query beside it."""
    properties = {names[0]: schema, **CaptionParams.model_json_schema()["properties"]}
    form = {"type": "object", "properties": properties, "required": [names[0]], "additionalProperties": False}
    return {"schema": {**form, "description": f"`{names[0]}` may also be called `{names[1]}`."}}


def _with_parameters(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """JSON with `name`, and the parameters of the query beside it."""
    made = CaptionParams.model_json_schema()
    return {"schema": {**made, "title": f"{name} and parameters", "required": [name],
                       "properties": {name: schema, **made["properties"]}}}  # fmt: skip


_ONE = {
    "multipart/form-data": _form(uploads.ONE, _FILE),
    "image/*": {"schema": _FILE},
    "application/octet-stream": {"schema": _FILE},
    "application/json": _with_parameters("image", _JSON_PICTURE),
}
_MANY = {
    "multipart/form-data": _form(uploads.MANY, {"type": "array", "items": _FILE}),
    "application/json": _with_parameters("images", {"type": "array", "items": _JSON_PICTURE, "minItems": 1}),
}


@router.put(
    "/caption",
    summary="Caption, as `curl -T FILE` asks",
    response_model_exclude_none=True,
    responses=problems(400, 401, 408, 413, 415, 421, 422, 431, 500, 503, 504),
    openapi_extra={"requestBody": {"required": True, "content": _ONE}},
)
@router.post(
    "/caption",
    response_model_exclude_none=True,
    responses=problems(400, 401, 408, 413, 415, 421, 422, 431, 500, 503, 504),
    openapi_extra={"requestBody": {"required": True, "content": _ONE}},
)
async def caption(request: Request, params: Params) -> CaptionResponse:
    """Caption one picture: JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF; of an animation, its first frame."""
    with incoming(request) as received:
        if received.is_json:
            body = await received.json()
            given = dict(body.value)
            data = await received.picture(body, _string(given, "image"))
            params = parameters(given, params)
        else:
            form = await received.image()
            data = form.files[0].data
            params = parameters(form.fields, params, strict=False)
        return await received.caption_one(data, params)


@router.post(
    "/captions",
    response_model=CaptionsResponse,
    responses=problems(400, 401, 408, 413, 415, 421, 422, 431, 500, 503, 504),
    openapi_extra={"requestBody": {"required": True, "content": _MANY}},
)
async def captions(request: Request, params: Params) -> Response:
    """Caption several pictures: each gets its captions or its own error, in the order they were sent."""
    state = request.state
    with ExitStack() as stack:
        received = stack.enter_context(incoming(request))
        if received.is_json:
            body = await received.json(received.settings.max_batch_bytes)
            given = dict(body.value)
            files: list[bytes | ServiceError] = await received.pictures(body, _strings(given, "images"))
            names = [""] * len(files)
            params = parameters(given, params)
        else:
            form = await received.images()
            files = [file.data for file in form.files]
            names = [file.filename for file in form.files]
            params = parameters(form.fields, params, strict=False)
        if _wants_lines(request):
            stack.enter_context(received.service.batcher.admit(len(files)))
            return Lines(_lines(received, files, names, params), stack.pop_all())
        answers = await received.caption(files, params)
    results = [_result(name, answer, state.request_id) for name, answer in zip(names, answers, strict=True)]
    # Reasons for thousands of words are megabytes: a picture at a time, so that others' requests go on in between.
    parts = [await received.service.offload(_json, result, large=params.explain) for result in results]
    rest = CaptionsResponse(results=[], request_id=state.request_id).model_dump_json().encode()
    return Response(rest.replace(b"[]", b"[" + b",".join(parts) + b"]", 1), media_type="application/json")


class Lines(StreamingResponse):
    """Lines of JSON, each sent as it is made; what was held for the request is given back after the last."""

    media_type = NDJSON

    def __init__(self, lines: AsyncIterator[bytes], held: ExitStack) -> None:
        super().__init__(lines)
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until the client hangs up."""
        with self.held:
            await super().__call__(scope, receive, send)


async def _lines(
    received: Incoming, files: Sequence[bytes | ServiceError], names: Sequence[str], params: CaptionParams
) -> AsyncIterator[bytes]:
    answers = received.caption_as_ready(files, params)
    async with aclosing(answers):
        async for index, answer in answers:
            result = _result(names[index], answer, received.request.state.request_id)
            line = Line(index=index, **dict(result))
            yield await received.service.offload(_json, line, large=params.explain) + b"\n"


def _wants_lines(request: Request) -> bool:
    """Whether the client asks for lines, and not only would take anything."""
    accepted = request.headers.get("accept", "").lower().split(",")
    return NDJSON in (one.partition(";")[0].strip() for one in accepted)


def _string(given: dict[str, Any], name: str) -> str:
    value = given.pop(name, None)
    if not isinstance(value, str):
        raise BadParameter(f"{name}: the JSON needs a picture there, as base64 or as a data: URL")
    return value


def _strings(given: dict[str, Any], name: str) -> list[str]:
    value = given.pop(name, None)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise BadParameter(f"{name}: the JSON needs a list of pictures there, each as base64 or as a data: URL")
    return value


def _json(result: Result) -> bytes:
    return result.model_dump_json(exclude_none=True).encode()


def _result(filename: str, answer: CaptionResponse | ServiceError, request_id: str) -> Result:
    if isinstance(answer, ServiceError):
        error = Problem(**problem(answer.status, answer.code, answer.detail, request_id))
        return Result(filename=filename, error=error)
    return Result(filename=filename, result=answer)
