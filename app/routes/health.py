"""GET /health/live and GET /health/ready."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.errors import EngineHangs, NotReady
from app.routes.problems import problems
from app.schemas import Health
from app.serving.service import CaptionService

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", responses=problems(421, 503))
async def live(request: Request) -> Health:
    """Whether the process answers and its engine does not hang; if not, restart it."""
    service: CaptionService = request.app.state.service
    seconds = service.batcher.engine_seconds
    if seconds > service.settings.hang:
        raise EngineHangs(f"the engine has not answered for {seconds:.0f} seconds")
    return Health()


@router.get("/ready", responses=problems(421, 503))
async def ready(request: Request) -> Health:
    """Whether to send requests here: the model is loaded, pictures can be decoded, the service is not stopping."""
    service: CaptionService = request.app.state.service
    if not service.ready:
        raise NotReady("the service is stopping")
    if not service.guard.ready:
        raise NotReady("pictures cannot be decoded now")
    return Health()
