"""What all routes that caption share: the body within its limits, its pictures, the one call of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from app.errors import BadParameter, ServiceError, TooLarge, UrlRefused
from app.json_body import SLACK, SMALL, JsonBody, from_base64, read_json
from app.pictures import uploads
from app.schemas import CaptionParams, CaptionResponse
from app.serving.service import CaptionService, cancel_on_disconnect


class Incoming:
    """One request on its way; see `incoming`."""

    def __init__(self, request: Request, reserve: uploads.Reserve) -> None:
        self.request, self.reserve = request, reserve
        self.service: CaptionService = request.app.state.service
        self.settings = self.service.settings
        self.pace = uploads.Pace(self.settings.body_timeout, 1000 * self.settings.body_rate_kb)

    @property
    def is_json(self) -> bool:
        return uploads.media_type(self.request) == "application/json"

    async def image(self) -> uploads.Form:
        """The picture of a form, or the body itself."""
        return await uploads.read_image(self.request, self.settings.max_upload_bytes, self.pace, self.reserve)

    async def images(self) -> uploads.Form:
        """The pictures of a form."""
        settings = self.settings
        return await uploads.read_images(
            self.request, settings.max_images, settings.max_batch_bytes, self.pace, self.reserve
        )

    async def raw(self, limit: int) -> bytes:
        return b"".join([chunk async for chunk in uploads.stream(self.request, limit, self.pace, self.reserve)])

    async def json(self, limit: int | None = None) -> JsonBody:
        """The body as JSON; limit: bytes of all its pictures together, once decoded; by default of one."""
        largest = int(SLACK * (limit or self.settings.max_upload_bytes)) + SMALL
        limit = min(largest, self.settings.upload_memory_bytes)
        return await read_json(uploads.stream(self.request, limit, self.pace, self.reserve))

    async def picture(self, body: JsonBody, text: str) -> bytes:
        """The picture that a string of `body` is: base64, a `data:` URL, or a URL of a host that is allowed."""
        raw = body.pop(text)
        if raw[:7].lower() == b"http://" or raw[:8].lower() == b"https://":
            return await self.fetched(raw.decode(errors="replace"))
        return await from_base64(raw, self.settings.max_upload_bytes)

    async def fetched(self, url: str) -> bytes:
        """The picture at `url`, of a host that is allowed."""
        if self.service.fetcher is None:
            raise UrlRefused("pictures are not fetched by URL here, unless CAPTION_FETCH_HOSTS is set; send them")
        return await self.service.fetcher.get(url, self.reserve)

    async def pictures(self, body: JsonBody, texts: Sequence[str]) -> list[bytes | ServiceError]:
        """Each of `texts`, or what is wrong with it; raises what is wrong with all of them together."""
        if len(texts) > self.settings.max_images:
            raise BadParameter(f"at most {self.settings.max_images} pictures in one request")
        made = await asyncio.gather(*(self.picture(body, text) for text in texts), return_exceptions=True)
        files: list[bytes | ServiceError] = []
        for one in made:
            if isinstance(one, ServiceError) and one.status < 500:
                files.append(one)
            elif isinstance(one, BaseException):
                raise one
            else:
                files.append(one)
        limit = self.settings.max_batch_bytes
        if sum(len(file) for file in files if isinstance(file, bytes)) > limit:
            raise TooLarge(f"the pictures have more than {limit} bytes together")
        return files

    async def caption(
        self, files: Sequence[bytes | ServiceError], params: CaptionParams
    ) -> list[CaptionResponse | ServiceError]:
        """An answer or an error for each file, in order: admitted, timed and given up when the client hangs up."""
        good = [file for file in files if isinstance(file, bytes)]
        state = self.request.state
        with self.service.batcher.admit(len(good)):
            work = self.service.caption(good, params, state.request_id, state.started)
            answers = iter(await cancel_on_disconnect(self.request, work))
        return [next(answers) if isinstance(file, bytes) else file for file in files]

    async def caption_as_ready(
        self, files: Sequence[bytes | ServiceError], params: CaptionParams
    ) -> AsyncGenerator[tuple[int, CaptionResponse | ServiceError]]:
        """As `caption`, each with its place as soon as it is there; the batcher must have admitted the files."""
        state = self.request.state
        places = [n for n, file in enumerate(files) if isinstance(file, bytes)]
        for n, file in enumerate(files):
            if isinstance(file, ServiceError):
                yield n, file
        good = [file for file in files if isinstance(file, bytes)]
        async for n, answer in self.service.caption_as_ready(good, params, state.request_id, state.started):
            yield places[n], answer

    async def caption_one(self, file: bytes, params: CaptionParams) -> CaptionResponse:
        """The answer for one picture; raises its error."""
        [answer] = await self.caption([file], params)
        if isinstance(answer, ServiceError):
            raise answer
        return answer


@contextmanager
def incoming(request: Request) -> Iterator[Incoming]:
    """Refuse what there is no room for before its body is read, and give its memory back at the end."""
    service: CaptionService = request.app.state.service
    service.batcher.check()
    with service.upload_memory.hold() as reserve:
        yield Incoming(request, reserve)


def parameters(fields: Mapping[str, Any], under: CaptionParams | None = None, *, strict: bool = True) -> CaptionParams:
    """Parameters of a body, over those of the query; strict: a number is a number, as JSON has it, and no text.

    Raises `BadParameter` with all that is wrong.
    """
    if not fields and under:
        return under
    given = {**(under.model_dump(exclude_unset=True) if under else {}), **fields}
    try:
        return CaptionParams.model_validate(given, strict=strict)
    except ValidationError as error:
        raise BadParameter(details(error.errors())) from error


def details(errors: Sequence[Any], skip: int = 0) -> str:
    """What is wrong where, as pydantic says it; what was sent is not echoed. skip: parts of the place to leave out."""
    return "; ".join(f"{'.'.join(map(str, e['loc'][skip:]))[:50]}: {e['msg']}" for e in errors)[:500]
