"""How problems are documented in OpenAPI and sent over HTTP."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from app.errors import PROBLEM_TYPE, BadParameter, ServiceError, clear_frames, problem

MEANING = {
    400: "The request or its form cannot be read.",
    401: "An API key is needed (where the service is set up with keys).",
    408: "The headers or the body arrived too slowly.",
    413: "The body, or the picture's number of pixels, is over the limit.",
    415: "Not a picture in a format that is read here.",
    421: "The request was sent to a name that is not the service's.",
    422: "A bad parameter, or a picture that cannot be decoded.",
    431: "The headers are over the limit.",
    500: "The model failed on this picture, or an unexpected error.",
    503: "Too much work is waiting, or the service is stopping; see `Retry-After`.",
    504: "The answer was not ready within the deadline.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these statuses."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    made: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        made[status] = {"description": MEANING[status], "content": content}
        if status == 503:
            header = {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 1}}
            made[status]["headers"] = {"Retry-After": header}
    return made


def install(app: FastAPI) -> None:
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    clear_frames(error)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(request, error.status, error.code, error.detail, headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Pydantic's messages say what is allowed; what was sent is not echoed.
    details = ("; ".join(f"{'.'.join(map(str, e['loc'][1:]))[:50]}: {e['msg']}" for e in error.errors()))[:500]
    return _response(request, BadParameter.status, BadParameter.code, details, {})


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "http_error")
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"  # app.serving.middleware
    return _response(request, error.status_code, code, str(error.detail), headers)


def _response(request: Request, status: int, code: str, detail: str, headers: dict[str, str]) -> Response:
    request.state.code = code
    content = problem(status, code, detail, request.state.request_id)
    return JSONResponse(content, status, headers, media_type=PROBLEM_TYPE)
