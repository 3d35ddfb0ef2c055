"""Azure's Image Analysis 4: captions and tags of a picture's bytes or, where hosts are allowed, of a URL."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request

from app.compat import protocol
from app.errors import BadParameter, NotSupported, ServiceError
from app.incoming import incoming, parameters

FEATURES = ("caption", "tags")
OTHERS = ("denseCaptions", "objects", "people", "read", "smartCrops")  # features that are Azure's alone
CODES = {401: "401", 404: "NotFound", 413: "InvalidImageSize", 415: "InvalidImageFormat", 503: "ServiceUnavailable"}
INNER = {"url_refused": "InvalidImageUrl", "fetch_failed": "InvalidImageUrl", "broken_image": "InvalidImageFormat"}


class Asked(protocol.Body):
    """Where the picture is; its bytes can be the body instead."""

    url: str


def _shape(error: ServiceError, status: int, request_id: str) -> dict[str, Any]:
    code = CODES.get(error.status, "InternalServerError" if error.status >= 500 else "InvalidRequest")
    inner = INNER.get(error.code, "NotSupportedFeature" if isinstance(error, NotSupported) else code)
    return {"error": {"code": code, "message": error.detail, "innererror": {"code": inner, "message": error.detail}}}


router = protocol.router("Azure Image Analysis", _shape, {413: 400, 415: 400, 422: 400})
_binary = {"schema": {"type": "string", "format": "binary"}}
_extra = protocol.documented(Asked, **{"application/octet-stream": _binary, "image/*": _binary})


@router.post("/computervision/imageanalysis:analyze", openapi_extra=_extra)
async def analyze(
    request: Request,
    features: Annotated[str, Query(description="`caption`, `tags` or both, with a comma.")],
    api_version: Annotated[str | None, Query(alias="api-version")] = None,
    model_version: Annotated[str, Query(alias="model-version")] = "latest",
    language: Annotated[str, Query(description="The model's own: `en`.")] = "en",
    neutral: Annotated[Literal["true", "false", "True", "False"], Query(alias="gender-neutral-caption")] = "false",
) -> dict[str, Any]:
    """Caption a picture and say what is in it, at the address `http://HOST:PORT` with the key of the service."""
    wanted = {feature.strip() for feature in features.split(",")}
    if azures := wanted.intersection(OTHERS):
        raise NotSupported(f"the features {', '.join(sorted(azures))} cannot be had here; caption and tags can")
    if unknown := wanted.difference(FEATURES):
        raise BadParameter(f"features: {min(unknown)[:50]!r} is none of {', '.join(FEATURES)}")
    served = protocol.service_of(request).model
    if model_version not in ("latest", served.version):
        protocol.check_model(request, f"{served.name}:{model_version}")
    if language != "en":
        raise NotSupported("language: this model writes English")
    params = parameters({"wording": "gender-neutral"} if neutral.lower() == "true" else {})
    with incoming(request) as received:
        if received.is_json:
            data = await received.fetched(protocol.read(Asked, await received.json()).url)
        else:
            data = (await received.image()).files[0].data
        answer = await received.caption_one(data, params)
    size = {"width": answer.image.width, "height": answer.image.height}
    made: dict[str, Any] = {"modelVersion": served.version, "metadata": size}
    if "caption" in wanted:
        made["captionResult"] = {"text": answer.caption, "confidence": answer.confidence}
    if "tags" in wanted:
        tags = protocol.tags(answer)
        if tags is None:
            raise NotSupported(f"{served.name!r} has no tags")
        made["tagsResult"] = {"values": [{"name": name, "confidence": likely} for name, likely in tags]}
    return made
