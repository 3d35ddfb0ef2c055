"""A client of the captioning service, for threads and for asyncio, and the command `caption`. Needs httpx alone."""

from caption_client.answers import Answer, Caption, Problem, Result
from caption_client.client import AsyncCaptionClient, CaptionClient, CaptionError

__version__ = "0.1.0"
__all__ = ["Answer", "AsyncCaptionClient", "Caption", "CaptionClient", "CaptionError", "Problem", "Result"]
