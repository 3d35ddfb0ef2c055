"""A client of the captioning service, for threads and for asyncio, and the command `caption`. Needs httpx alone."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caption_client.answers import Answer, Caption, Problem, Result
    from caption_client.client import AsyncCaptionClient, CaptionClient, CaptionError

__version__ = "0.1.0"
CLIENT = ("AsyncCaptionClient", "CaptionClient", "CaptionError")
__all__ = ["Answer", "AsyncCaptionClient", "Caption", "CaptionClient", "CaptionError", "Problem", "Result"]


def __getattr__(name: str) -> object:
    """What is public here, imported when it is first asked for: the command can be interrupted before that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.client" if name in CLIENT else f"{__name__}.answers"), name)
