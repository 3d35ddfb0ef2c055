"""Other services' protocols over this one's service call, so that their clients can simply be pointed here.

Each is a module with a `router`; `CAPTION_COMPAT` says which are answered. Limits, keys, deadlines, admission and
metrics are those of every other request. Prompts are ignored: the model says what it sees, and cannot be asked.
A module is imported when the first request for it comes, or for the API document: who uses none pays for none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.params import Depends
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

# Where each protocol has its routes, by the name of its module; the innermost first.
PATHS: Mapping[str, Sequence[str]] = {
    "photoprism": ("/api/v1/vision/{rest:path}",),
    "huggingface": ("/", "/models/{rest:path}"),
    "openai": ("/v1/{rest:path}",),
    "ollama": ("/api/{rest:path}",),
    "azure": ("/computervision/{rest:path}",),
    "oip": ("/v2", "/v2/{rest:path}"),
}


class _Later(Route):
    """Stands for the routes at `path`, which `add` puts behind it when a request may be for one of them."""

    def __init__(self, path: str, add: Callable[[], object]) -> None:
        super().__init__(path, add, include_in_schema=False)
        self.add = add

    def is_for(self, scope: Scope) -> bool:
        """Whether a request is for a path of these, by whatever method."""
        return super().matches(scope)[0] is not Match.NONE

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Never: the routes that it adds do."""
        if self.is_for(scope):
            self.add()
        return Match.NONE, {}


def install(app: FastAPI, protocols: Sequence[str], guard: Sequence[Depends]) -> None:
    """Answer `protocols`, names of modules here; guard: what asks for a key, where one is needed."""

    @cache
    def add(name: str) -> None:
        app.include_router(_router(name), dependencies=guard)

    places = [(name, _Later(path, partial(add, name))) for name in PATHS if name in protocols for path in PATHS[name]]
    app.router.routes += [place for _, place in places]
    document, otherwise = app.openapi, app.exception_handlers[HTTPException]

    def whole() -> dict[str, Any]:
        for name in protocols:
            add(name)
        return document()

    async def unknown(request: Request, error: Exception) -> Response:
        """What a protocol has and is not done here is an error of its own shape."""
        assert isinstance(error, HTTPException)
        for name, place in places:
            if place.path != "/" and place.is_for(request.scope):
                answer: Response = _router(name).route_class.unknown(request, error)  # type: ignore[attr-defined]
                return answer
        made: Response = await otherwise(request, error)  # type: ignore[misc]
        return made

    app.openapi = whole  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, unknown)


def _router(name: str) -> APIRouter:
    router: APIRouter = import_module(f"{__name__}.{name}").router
    return router
