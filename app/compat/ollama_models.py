"""What Ollama's clients ask about models before they use one."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from app import __version__
from app.compat import protocol
from app.errors import ServiceError
from app.incoming import incoming


class Show(protocol.Body):
    model: str | None = None
    name: str | None = None  # as older clients call it


def shape(error: ServiceError, status: int, request_id: str) -> dict[str, Any]:
    """As Ollama has it."""
    return {"error": error.detail}


router = protocol.router("Ollama", shape, {422: 400})


@router.get("/api/version")
async def version() -> dict[str, str]:
    """The version of this service."""
    return {"version": __version__}


@router.get("/api/tags")
async def tags(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    return {"models": [_model(request)]}


@router.get("/api/ps")
async def running(request: Request) -> dict[str, Any]:
    """That model, which is always loaded."""
    return {"models": [_model(request)]}


@router.post("/api/show", openapi_extra=protocol.documented(Show))
async def show(request: Request) -> dict[str, Any]:
    """What the model is and can do."""
    with incoming(request) as received:
        asked = protocol.read(Show, await received.json())
    model = protocol.check_model(request, asked.model or asked.name)
    architecture = protocol.service_of(request).engine.config.decoder.cell
    return {
        "details": _details(request),
        "model_info": {"general.architecture": architecture, "general.basename": model.name},
        "capabilities": ["completion", "vision"],
        "template": f"[a picture's caption; {protocol.NOTE}]",
        "parameters": "",
        "modelfile": "",
        "modified_at": _changed(request),
    }


def _model(request: Request) -> dict[str, Any]:
    model = protocol.check_model(request, None)
    folder = protocol.service_of(request).settings.model
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    digest = hashlib.sha256(f"{model.name} {model.version}".encode()).hexdigest()  # the same for the same release
    name = f"{model.name}:latest"
    about = {"size": size, "digest": digest, "details": _details(request)}
    return {"name": name, "model": name, "modified_at": _changed(request), **about}


def _details(request: Request) -> dict[str, Any]:
    service = protocol.service_of(request)
    family = service.engine.config.decoder.cell
    return {"format": service.engine.name, "family": family, "families": [family], "parent_model": ""}


def _changed(request: Request) -> str:
    folder = protocol.service_of(request).settings.model
    seconds = folder.stat().st_mtime if folder.is_dir() else 0
    return datetime.fromtimestamp(seconds, UTC).isoformat()
