"""POST /caption and POST /captions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from app import uploads
from app.errors import ServiceError, problem
from app.routes.problems import problems
from app.schemas import CaptionParams, CaptionResponse, CaptionsResponse, Problem, Result
from app.service import CaptionService, unless_gone

router = APIRouter(tags=["captions"])
Params = Annotated[CaptionParams, Query()]

_FILE = {"type": "string", "format": "binary"}


def _form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": {"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": False}
    }


_ONE = {
    "multipart/form-data": _form("image", _FILE),
    "image/*": {"schema": _FILE},
    "application/octet-stream": {"schema": _FILE},
}
_MANY = {"multipart/form-data": _form("images", {"type": "array", "items": _FILE, "minItems": 1})}


@router.post(
    "/caption",
    response_model_exclude_none=True,
    responses=problems(400, 401, 408, 413, 415, 422, 431, 500, 503, 504),
    openapi_extra={"requestBody": {"required": True, "content": _ONE}},
)
async def caption(request: Request, params: Params) -> CaptionResponse:
    """Caption one picture: JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF; of an animation, its first frame."""
    service: CaptionService = request.app.state.service
    settings = service.settings
    service.batcher.check()  # refuse before the upload, not after it
    with service.upload_memory.hold() as take:
        upload = await uploads.read_image(request, settings.max_upload_bytes, settings.body_timeout, take)
        with service.batcher.admit():
            state = request.state
            work = service.caption([upload.data], params, state.request_id, state.started)
            [answer] = await unless_gone(request, work)
    if isinstance(answer, ServiceError):
        raise answer
    return answer


@router.post(
    "/captions",
    response_model_exclude_none=True,
    responses=problems(400, 401, 408, 413, 415, 422, 431, 500, 503, 504),
    openapi_extra={"requestBody": {"required": True, "content": _MANY}},
)
async def captions(request: Request, params: Params) -> CaptionsResponse:
    """Caption several pictures: each gets its captions or its own error, in the order they were sent."""
    service: CaptionService = request.app.state.service
    settings = service.settings
    service.batcher.check()
    with service.upload_memory.hold() as take:
        files = await uploads.read_images(
            request, settings.max_images, settings.max_batch_bytes, settings.body_timeout, take
        )
        with service.batcher.admit(len(files)):
            state = request.state
            work = service.caption([file.data for file in files], params, state.request_id, state.started)
            answers = await unless_gone(request, work)
    results = [_result(file.filename, answer, state.request_id) for file, answer in zip(files, answers, strict=True)]
    return CaptionsResponse(results=results, request_id=state.request_id)


def _result(filename: str, answer: CaptionResponse | ServiceError, request_id: str) -> Result:
    if isinstance(answer, ServiceError):
        error = Problem(**problem(answer.status, answer.code, answer.detail, request_id))
        return Result(filename=filename, error=error)
    return Result(filename=filename, result=answer)
