"""What the protocols share: errors in a shape of their own, the name of the model, and what is ignored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from app.errors import BadParameter, NotSupported, ServiceError, UnknownModel, clear_frames
from app.incoming import details
from app.json_body import JsonBody
from app.schemas import CaptionResponse, ModelRef
from app.serving.service import CaptionService
from model.config import MAX_LENGTH

NOTE = "the prompt was ignored: this model says what a picture shows and takes no instructions"
ERRORS = (400, 401, 404, 408, 413, 415, 421, 422, 500, 503, 504)
B = TypeVar("B", bound="Body")
Shape = Callable[[ServiceError, int, str], dict[str, Any]]  # of an error, its status and the request's id


class Body(BaseModel):
    """What is read of a body; what is not named here is ignored, as the protocols' own servers do."""

    model_config = ConfigDict(strict=True, extra="ignore")


def router(tag: str, shape: Shape, status: Mapping[int, int] | None = None) -> APIRouter:
    """A router whose errors look as the protocol's clients expect; status: those that it calls by another number."""

    def answer(request: Request, error: ServiceError, number: int, headers: Mapping[str, str]) -> Response:
        clear_frames(error)
        request.state.code = error.code
        return JSONResponse(shape(error, number, request.state.request_id), number, headers)

    class Route(APIRoute):
        """Sends errors in the protocol's shape; what is found wrong before the routes stays a problem."""

        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
            handle = super().get_route_handler()

            async def shaped(request: Request) -> Response:
                try:
                    return await handle(request)
                except RequestValidationError as invalid:
                    error: ServiceError = BadParameter(details(invalid.errors(), 1))
                except ServiceError as failed:
                    error = failed
                headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
                if error.status == 401:
                    headers["WWW-Authenticate"] = "Bearer"
                return answer(request, error, (status or {}).get(error.status, error.status), headers)

            return shaped

        @staticmethod
        def unknown(request: Request, error: HTTPException) -> Response:
            """The answer where no route is, or none for the request's method."""
            what = f"{request.method} {request.url.path[:100]}"
            refused = NotSupported(f"{what} is not among what can be done here: pictures are captioned")
            return answer(request, refused, error.status_code, error.headers or {})

    schema = {"application/json": {"schema": {"type": "object", "title": f"{tag} error"}}}
    retry = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
    responses: dict[int | str, dict[str, Any]] = {
        number: {"description": "An error in this protocol's shape.", "content": schema} for number in ERRORS
    }
    responses[503]["headers"] = retry
    # Refused before the route: as the service's own routes say it.
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses[421] = {"description": "The request was sent to a name that is not the service's.", "content": problem}
    return APIRouter(tags=[tag], route_class=Route, responses=responses)


def service_of(request: Request) -> CaptionService:
    service: CaptionService = request.app.state.service
    return service


def read(shape: type[B], body: JsonBody) -> B:
    """The members of `body` that the protocol needs; raises `BadParameter` with all that is wrong."""
    try:
        return shape.model_validate(body.value)
    except ValidationError as error:
        raise BadParameter(details(error.errors())) from error


def documented(shape: type[Body], **others: Any) -> dict[str, Any]:
    """`openapi_extra` for a route that reads `shape` as JSON; others: bodies of other types."""
    schema = shape.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    content = {"application/json": {"schema": _inlined(schema, definitions)}, **others}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """`schema` without references: OpenAPI keeps definitions elsewhere."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(one, definitions) for name, one in schema.items()}


def names(model: ModelRef) -> set[str]:
    """What the model may be called."""
    return {model.name, f"{model.name}:{model.version}", f"{model.name}:latest"}


def check_model(request: Request, asked: str | None) -> ModelRef:
    """The model that is served; raises `UnknownModel` where another is asked for."""
    model = service_of(request).model
    if asked and asked not in names(model):
        raise UnknownModel(f"there is no model {asked[:100]!r} here; {model.name!r} is served")
    return model


def sampling(temperature: float | None, top_p: float | None, seed: int | None) -> dict[str, Any]:
    """The parameters for how a language model would be told to draw: a temperature of 0 draws nothing."""
    if not (temperature if temperature is not None else (top_p or 1) < 1):
        return {}
    given = {"temperature": temperature, "top_p": top_p or None, "seed": seed}
    return {"strategy": "sample", **{name: value for name, value in given.items() if value is not None}}


def most_words(request: Request, tokens: int | None) -> dict[str, Any]:
    """The parameters for at most so many tokens, never more than the model's own limit; below 1 there is no limit."""
    if tokens is None or tokens < 1:
        return {}
    return {"max_length": min(tokens, service_of(request).engine.config.search.max_length, MAX_LENGTH)}


def pieces(text: str) -> list[str]:
    """A sentence in pieces that together are it, as streams send it."""
    first, *others = text.split(" ")
    return [first, *(f" {word}" for word in others)]


def ended(answer: CaptionResponse, choice: int = 0) -> str:
    """Why a caption ends: `stop`, or `length` where it was cut off."""
    tokens = answer.captions[choice].tokens
    return "stop" if tokens and tokens[-1].text == "." else "length"


def tags(answer: CaptionResponse) -> list[tuple[str, float]] | None:
    """What the model sees and how likely, likeliest first; None for a checkpoint that cannot tell."""
    return None if answer.tags is None else [(tag.text, tag.probability) for tag in answer.tags]
