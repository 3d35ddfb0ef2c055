"""Other services' protocols over this one's service call, so that their clients can simply be pointed here.

Each is a module with a `router`; `CAPTION_COMPAT` says which are answered. Limits, keys, deadlines, admission and
metrics are those of every other request. Prompts are ignored: the model says what it sees, and cannot be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from fastapi import FastAPI
from fastapi.params import Depends


def install(app: FastAPI, protocols: Sequence[str], guard: Sequence[Depends]) -> None:
    """Add the routes of `protocols`, names of modules here; guard: what asks for a key, where one is needed."""
    for name in protocols:
        app.include_router(import_module(f"{__name__}.{name}").router, dependencies=guard)
