"""PhotoPrism's vision service: captions, and labels from the model's tags, for the first of a request's `images`."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from app.compat import protocol
from app.errors import BadParameter, NotSupported, ServiceError
from app.incoming import incoming, parameters
from app.schemas import CaptionResponse


class Asked(protocol.Body):
    """A picture as a `data:` URL, or by its address; a prompt is ignored."""

    id: str | None = None
    model: str | None = None
    images: list[str] | None = None
    url: str | None = None


def _shape(error: ServiceError, status: int, request_id: str) -> dict[str, Any]:
    return {"id": request_id, "code": status, "error": error.detail, "result": {}}


router = protocol.router("PhotoPrism Vision", _shape, {422: 400})
_extra = protocol.documented(Asked)


async def _answered(request: Request, model: str | None, version: str | None) -> tuple[str, CaptionResponse]:
    """The request's id and the picture's answer."""
    with incoming(request) as received:
        body = await received.json()
        asked = protocol.read(Asked, body)
        served = protocol.check_model(request, model or asked.model)
        if version and version not in (served.version, "latest"):
            protocol.check_model(request, f"{served.name}:{version}")
        picture = asked.images[0] if asked.images else asked.url
        if not picture:
            raise BadParameter("images: a picture is needed, as a data: URL")
        answer = await received.caption_one(await received.picture(body, picture), parameters({}))
    return asked.id or answer.request_id, answer


def _response(request: Request, id: str, result: dict[str, Any]) -> dict[str, Any]:
    service = protocol.service_of(request)
    size = service.engine.config.preprocess.size
    model = {"name": service.model.name, "version": service.model.version, "resolution": size}
    return {"id": id, "code": 200, "model": model, "result": result}


@router.post("/api/v1/vision/caption", openapi_extra=_extra)
@router.post("/api/v1/vision/caption/{model}", openapi_extra=_extra)
@router.post("/api/v1/vision/caption/{model}/{version}", openapi_extra=_extra)
async def caption(request: Request, model: str | None = None, version: str | None = None) -> dict[str, Any]:
    """A picture's caption."""
    id, answer = await _answered(request, model, version)
    found = {"text": answer.caption, "source": "image", "confidence": answer.confidence}
    return _response(request, id, {"caption": found})


@router.post("/api/v1/vision/labels", openapi_extra=_extra)
@router.post("/api/v1/vision/labels/{model}", openapi_extra=_extra)
@router.post("/api/v1/vision/labels/{model}/{version}", openapi_extra=_extra)
async def labels(request: Request, model: str | None = None, version: str | None = None) -> dict[str, Any]:
    """What is in a picture, where the model has tags."""
    id, answer = await _answered(request, model, version)
    found = protocol.tags(answer)
    if found is None:
        raise NotSupported(f"{answer.model.name!r} has no tags to make labels of")
    made = [
        {"name": name, "source": "image", "confidence": likely, "topicality": likely, "categories": []}
        for name, likely in found
    ]
    return _response(request, id, {"labels": made})
