"""`caption mcp`: the Model Context Protocol over standard input and output, for assistants that run on this machine.

The model is in this process, behind the same limits as the service's. Files are read as the user who started it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging.config
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from app import __version__
from app.errors import BrokenImage, ServiceError, TooLarge, UrlRefused
from app.json_body import from_base64
from app.metrics import Metrics
from app.schemas import CaptionParams, CaptionResponse
from app.serving.logs import log_config
from app.serving.service import CaptionService, open_engine
from app.settings import SettingsError, from_environment
from caption_client.files import find
from model.errors import CaptionModelError

if TYPE_CHECKING:
    from mcp.server import MCPServer

MOST_FILES = 1000
INSTRUCTIONS = (
    "Says in a sentence what a picture shows, with how sure it is. It takes no instructions about what to say or to "
    "look for; the pictures stay on this machine."
)

Picture = Annotated[str, Field(description="Path of a picture file on this machine, or a data: URL with base64.")]
Folder = Annotated[str, Field(description="Path of a folder of pictures on this machine.")]
Captions = Annotated[int, Field(ge=1, le=5, description="How many different captions, best first.")]
Most = Annotated[int, Field(ge=1, le=MOST_FILES, description="Most pictures to caption, by name.")]


class Captioned(BaseModel):
    """A picture's captions, or why there are none; the confidence, from 0 to 1, is that of the first caption."""

    name: str
    captions: list[str] = []
    confidence: float | None = None
    error: str | None = None


class Pictures(BaseModel):
    """A folder's pictures, and how many more it has."""

    pictures: list[Captioned]
    left_out: int


def server(service: CaptionService) -> MCPServer:
    """The tools, over a service that is running."""
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    made = MCPServer("caption", instructions=INSTRUCTIONS, version=__version__)

    async def look(names: list[str], params: CaptionParams) -> list[Captioned]:
        files = [await _bytes(service, name) for name in names]
        good = [file for file in files if isinstance(file, bytes)]
        with service.batcher.admit(len(good)):
            answers = iter(await service.caption(good, params, uuid.uuid4().hex, time.perf_counter()))
        return [
            _captioned(name, next(answers) if isinstance(file, bytes) else file)
            for name, file in zip(names, files, strict=True)
        ]

    @made.tool()
    async def caption_picture(picture: Picture, num_captions: Captions = 1) -> Captioned:
        """Say what a picture shows."""
        try:
            [answer] = await look([picture], CaptionParams(num_captions=num_captions))
        except ServiceError as error:
            raise ToolError(error.detail) from error
        if answer.error:
            raise ToolError(answer.error)
        answer.name = "" if picture[:5].lower() == "data:" else picture
        return answer

    @made.tool()
    async def caption_folder(folder: Folder, most: Most = 100) -> Pictures:
        """Say what each picture in a folder and in those below it shows."""
        names = await asyncio.to_thread(_pictures, folder)
        if names is None:
            raise ToolError(f"{folder} is no folder")
        pictures: list[Captioned] = []
        step = service.settings.max_images
        for at in range(0, min(len(names), most), step):
            try:
                pictures += await look(names[at : min(at + step, most)], CaptionParams())
            except ServiceError as error:
                raise ToolError(error.detail) from error
        return Pictures(pictures=pictures, left_out=max(len(names) - most, 0))

    return made


def _pictures(folder: str) -> list[str] | None:
    """The pictures in a folder and below it; None where it is none."""
    path = Path(folder).expanduser()
    return sorted(find([str(path)])) if path.is_dir() else None


async def _bytes(service: CaptionService, name: str) -> bytes | ServiceError:
    """The file that a path or URL names, or why it cannot be had."""
    limit = service.settings.max_upload_bytes
    try:
        if name[:5].lower() == "data:":
            return await from_base64(bytearray(name.encode(errors="replace")), limit)
        if name.lower().startswith(("http://", "https://")):
            if service.fetcher is None:
                raise UrlRefused("pictures are not fetched by URL here, unless CAPTION_FETCH_HOSTS is set")
            return await service.fetcher.get(name, lambda count: None)
        return await asyncio.to_thread(_read, name, limit)
    except ServiceError as error:
        return error
    except (OSError, ValueError) as error:
        return BrokenImage(f"cannot read {name[:200]}: {getattr(error, 'strerror', None) or error}")


def _read(name: str, limit: int) -> bytes:
    path = Path(name).expanduser()
    if not path.is_file():  # a device has no end
        raise FileNotFoundError(2, "there is no such file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLarge(f"the file is larger than {limit} bytes")
    return data


def _captioned(name: str, answer: CaptionResponse | ServiceError) -> Captioned:
    if isinstance(answer, ServiceError):
        return Captioned(name=name, error=answer.detail)
    return Captioned(name=name, captions=[one.text for one in answer.captions], confidence=answer.confidence)


async def _serve(service: CaptionService) -> None:
    tools = server(service)
    await service.start()
    try:
        await tools.run_stdio_async()
    finally:
        await service.stop()


def main(arguments: list[str] | None = None) -> int:
    """Serve until standard input ends; returns the exit status. Settings are the service's own variables."""
    parser = argparse.ArgumentParser(prog="caption mcp", description=__doc__ and __doc__.partition("\n")[0])
    parser.add_argument("--model", help="checkpoint folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        import mcp  # noqa: F401

        settings = from_environment(**given)
        logging.config.dictConfig(log_config(settings.log_level))
        asyncio.run(_serve(CaptionService(settings, open_engine(settings), Metrics())))
    except ModuleNotFoundError as error:
        if error.name != "mcp":
            raise
        print("error: the package mcp is not installed here: pip install 'caption-service[mcp]'", file=sys.stderr)
        return 2
    except (SettingsError, CaptionModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
