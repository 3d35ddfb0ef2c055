"""The Open Inference Protocol, version 2, as Triton and KServe speak it: pictures are BYTES, in JSON as base64.

Tensors of pixels are refused: the model's own decoding is what it was trained with.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Request
from starlette.responses import JSONResponse, Response

from app import __version__
from app.compat import protocol, tensors
from app.compat.tensors import INPUT, LENGTH, OUTPUTS, Asked
from app.errors import BadParameter, ServiceError
from app.incoming import incoming, parameters
from app.routes import health
from app.schemas import CaptionParams, CaptionResponse


def _shape(error: ServiceError, status: int, request_id: str) -> dict[str, Any]:
    return {"error": error.detail}


router = protocol.router("Open Inference Protocol", _shape, {422: 400})
_binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get("/v2")
async def server() -> dict[str, Any]:
    """The server."""
    return {"name": "caption-service", "version": __version__, "extensions": ["binary_tensor_data"]}


@router.get("/v2/health/live")
async def live(request: Request) -> dict[str, bool]:
    """Whether the process answers."""
    await health.live(request)
    return {"live": True}


@router.get("/v2/health/ready")
async def ready(request: Request) -> dict[str, bool]:
    """Whether requests are taken."""
    await health.ready(request)
    return {"ready": True}


@router.get("/v2/models/{model}/ready")
@router.get("/v2/models/{model}/versions/{version}/ready")
async def model_ready(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Whether the model takes requests."""
    _check(request, model, version)
    await health.ready(request)
    return {"name": model, "ready": True}


@router.get("/v2/models/{model}")
@router.get("/v2/models/{model}/versions/{version}")
async def metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """The model's tensors."""
    _check(request, model, version)
    return {
        "name": model,
        "versions": [protocol.service_of(request).model.version],
        "platform": protocol.service_of(request).engine.name,
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in OUTPUTS.items()],
    }


_extra = protocol.documented(Asked, **_binary)


@router.post("/v2/models/{model}/infer", response_class=JSONResponse, openapi_extra=_extra)
@router.post("/v2/models/{model}/versions/{version}/infer", response_class=JSONResponse, openapi_extra=_extra)
async def infer(
    request: Request, model: str, version: str | None = None, length: Annotated[str, Header(alias=LENGTH)] = ""
) -> Response:
    """Caption every picture of the tensor `image`; one that cannot be captioned fails them all."""
    _check(request, model, version)
    with incoming(request) as received:
        asked, files = await (tensors.from_binary(received, length) if length else tensors.from_json_body(received))
        names = [output.name for output in asked.outputs] if asked.outputs else list(OUTPUTS)
        if unknown := set(names).difference(OUTPUTS):
            raise BadParameter(f"outputs: {min(unknown)[:50]!r} is none of {', '.join(OUTPUTS)}")
        known = {name: asked.parameters[name] for name in CaptionParams.model_fields if name in asked.parameters}
        answers = await received.caption(files, parameters(known))
    good: list[CaptionResponse] = []
    for n, answer in enumerate(answers):
        if isinstance(answer, ServiceError):
            answer.detail = f"picture {n}: {answer.detail}"
            raise answer
        good.append(answer)
    all_binary = asked.parameters.get("binary_data_output") is True
    binary = {output.name for output in asked.outputs or () if output.parameters.get("binary_data", all_binary)}
    if all_binary and not asked.outputs:
        binary = set(names)
    head = {"model_name": model, "model_version": protocol.service_of(request).model.version}
    head |= {"id": asked.id} if asked.id else {}
    return tensors.response(head, names, binary, good)


def _check(request: Request, model: str, version: str | None) -> None:
    served = protocol.check_model(request, model)
    if version and version not in (served.version, "latest"):
        protocol.check_model(request, f"{served.name}:{version}")
