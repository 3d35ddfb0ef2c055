"""GET /model and GET /metrics: what is served, and how it is doing."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from app import __version__
from app.routes.problems import problems
from app.schemas import ModelResponse, ServiceOut
from app.serving.service import CaptionService

router = APIRouter(tags=["about"])


@router.get("/model", responses=problems(401, 421))
async def model(request: Request) -> ModelResponse:
    """The model card's facts, the search defaults and the service's limits."""
    service: CaptionService = request.app.state.service
    engine, settings = service.engine, service.settings
    return ModelResponse(
        name=engine.config.name,
        version=engine.config.version,
        engine=engine.name,
        device=engine.device,
        precision=engine.precision,
        search=asdict(engine.config.search),
        limits={
            "max_upload_bytes": settings.max_upload_bytes,
            "max_batch_bytes": settings.max_batch_bytes,
            "max_images": settings.max_images,
            "max_pixels": settings.max_pixels,
        },
        card=dict(engine.card),
        service=ServiceOut(version=__version__, commit=settings.commit or None),
    )


@router.get("/metrics", response_class=PlainTextResponse, responses=problems(401, 421))
async def metrics(request: Request) -> PlainTextResponse:
    """Prometheus metrics."""
    service: CaptionService = request.app.state.service
    return PlainTextResponse(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)
