"""POST /caption and POST /captions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.errors import ServiceError, problem
from app.pictures import uploads
from app.routes.problems import problems
from app.schemas import CaptionParams, CaptionResponse, CaptionsResponse, Problem, Result
from app.serving.service import CaptionService, unless_gone

router = APIRouter(tags=["captions"])
Params = Annotated[CaptionParams, Query()]

_FILE = {"type": "string", "format": "binary"}


def _form(names: tuple[str, ...], schema: dict[str, Any]) -> dict[str, Any]:
    """Any one of `names`: programs differ in what they call the field."""
    properties = dict.fromkeys(names, schema)
    form = {"type": "object", "properties": properties, "minProperties": 1, "maxProperties": 1}
    return {"schema": {**form, "additionalProperties": False}}


_ONE = {
    "multipart/form-data": _form(uploads.ONE, _FILE),
    "image/*": {"schema": _FILE},
    "application/octet-stream": {"schema": _FILE},
}
_MANY = {"multipart/form-data": _form(uploads.MANY, {"type": "array", "items": _FILE})}


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
    service: CaptionService = request.app.state.service
    settings = service.settings
    service.batcher.check()  # refuse before the upload, not after it
    with service.upload_memory.hold() as take:
        pace = uploads.Pace(settings.body_timeout, 1000 * settings.body_rate_kb)
        upload = await uploads.read_image(request, settings.max_upload_bytes, pace, take)
        with service.batcher.admit():
            state = request.state
            work = service.caption([upload.data], params, state.request_id, state.started)
            [answer] = await unless_gone(request, work)
    if isinstance(answer, ServiceError):
        raise answer
    return answer


@router.post(
    "/captions",
    response_model=CaptionsResponse,
    responses=problems(400, 401, 408, 413, 415, 421, 422, 431, 500, 503, 504),
    openapi_extra={"requestBody": {"required": True, "content": _MANY}},
)
async def captions(request: Request, params: Params) -> Response:
    """Caption several pictures: each gets its captions or its own error, in the order they were sent."""
    service: CaptionService = request.app.state.service
    settings = service.settings
    service.batcher.check()
    with service.upload_memory.hold() as take:
        pace = uploads.Pace(settings.body_timeout, 1000 * settings.body_rate_kb)
        files = await uploads.read_images(request, settings.max_images, settings.max_batch_bytes, pace, take)
        with service.batcher.admit(len(files)):
            state = request.state
            work = service.caption([file.data for file in files], params, state.request_id, state.started)
            answers = await unless_gone(request, work)
    results = [_result(file.filename, answer, state.request_id) for file, answer in zip(files, answers, strict=True)]
    # Reasons for thousands of words are megabytes: a picture at a time, so that others' requests go on in between.
    parts = [await service.aside(_json, result, large=params.explain) for result in results]
    rest = CaptionsResponse(results=[], request_id=state.request_id).model_dump_json().encode()
    return Response(rest.replace(b"[]", b"[" + b",".join(parts) + b"]", 1), media_type="application/json")


def _json(result: Result) -> bytes:
    return result.model_dump_json(exclude_none=True).encode()


def _result(filename: str, answer: CaptionResponse | ServiceError, request_id: str) -> Result:
    if isinstance(answer, ServiceError):
        error = Problem(**problem(answer.status, answer.code, answer.detail, request_id))
        return Result(filename=filename, error=error)
    return Result(filename=filename, result=answer)
