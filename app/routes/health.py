"""GET /health/live and GET /health/ready."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.errors import NotReady
from app.routes.problems import problems
from app.schemas import Health

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live")
async def live() -> Health:
    """Whether the process answers at all; if not, restart it."""
    return Health()


@router.get("/ready", responses=problems(503))
async def ready(request: Request) -> Health:
    """Whether to send requests here: the model is loaded and the service is not stopping."""
    if not request.app.state.service.ready:
        raise NotReady("the service is stopping")
    return Health()
