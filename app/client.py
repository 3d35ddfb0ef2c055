"""A client of the service, plain and async, that waits and tries again when the service asks for it."""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from app.schemas import CaptionResponse, CaptionsResponse, Result

Picture = bytes | str | Path  # its bytes, or where they are

BUSY = (429, 503)  # nothing was done; trying again is safe and wanted
LONGEST_WAIT = 60.0  # seconds, whatever Retry-After says


class CaptionError(Exception):
    """The service answered with a problem (RFC 9457), or not at all (`status` 0)."""

    def __init__(self, detail: str, status: int = 0, code: str = "unreachable", request_id: str = "") -> None:
        super().__init__(detail)
        self.detail, self.status, self.code, self.request_id = detail, status, code, request_id


class _Base:
    """What both clients share: the address, the headers, when to try again and how to read an answer."""

    def __init__(self, url: str, api_key: str | None, timeout: float, tries: int) -> None:
        if tries < 1:
            raise ValueError("tries must be 1 or more")
        self.tries = tries
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._options: dict[str, Any] = {"base_url": url.rstrip("/") + "/", "headers": headers, "timeout": timeout}

    def _wait(self, attempt: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next try, None if `outcome` is final. Captioning changes nothing, so it may be repeated."""
        if attempt >= self.tries:
            return None
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in BUSY:
                return None
            asked = retry_after(outcome.headers.get("Retry-After", ""))
            if asked is not None:
                return min(asked, LONGEST_WAIT)
        elif isinstance(outcome, httpx.ReadTimeout):
            return None  # it is working on it; asking twice makes it slower
        return min(0.25 * 2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)


class CaptionClient(_Base):
    """Captions pictures over HTTP; one client may be used from several threads.

    url: where the service is, such as `http://localhost:8000`. api_key: if the service needs one.
    timeout: seconds for each step of a request. tries: how often a busy (429, 503) or unreachable
    service is asked before `CaptionError` is raised. transport: httpx's, for tests.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        api_key: str | None = None,
        timeout: float = 60,
        tries: int = 6,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout, tries)
        self._http = httpx.Client(transport=transport, **self._options)

    def caption(self, picture: Picture, **params: Any) -> CaptionResponse:
        """One picture's captions; `params` are the query's (num_captions, explain, ...). Raises `CaptionError`."""
        return CaptionResponse.model_validate_json(self._send("POST", "caption", params, content=_bytes(picture)))

    def captions(self, pictures: Iterable[Picture], **params: Any) -> list[Result]:
        """Several pictures in one request: in order, each with its captions or its own error."""
        files = _files(pictures)
        return CaptionsResponse.model_validate_json(self._send("POST", "captions", params, files=files)).results

    def model(self) -> dict[str, Any]:
        """The model's name, limits and card."""
        facts: dict[str, Any] = json.loads(self._send("GET", "model"))
        return facts

    def _send(self, method: str, path: str, params: Mapping[str, Any] | None = None, **body: Any) -> bytes:
        for attempt in range(1, self.tries + 1):
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.request(method, path, params=_query(params or {}), headers=_type(body), **body)
            except httpx.TransportError as error:
                outcome = error
            wait = self._wait(attempt, outcome)
            if wait is None:
                break
            time.sleep(wait)
        return _content(outcome)

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncCaptionClient(_Base):
    """`CaptionClient` for asyncio."""

    def __init__(
        self,
        url: str = "http://localhost:8000",
        api_key: str | None = None,
        timeout: float = 60,
        tries: int = 6,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout, tries)
        self._http = httpx.AsyncClient(transport=transport, **self._options)

    async def caption(self, picture: Picture, **params: Any) -> CaptionResponse:
        """As `CaptionClient.caption`."""
        return CaptionResponse.model_validate_json(await self._send("POST", "caption", params, content=_bytes(picture)))

    async def captions(self, pictures: Iterable[Picture], **params: Any) -> list[Result]:
        """As `CaptionClient.captions`."""
        files = _files(pictures)
        return CaptionsResponse.model_validate_json(await self._send("POST", "captions", params, files=files)).results

    async def model(self) -> dict[str, Any]:
        """As `CaptionClient.model`."""
        facts: dict[str, Any] = json.loads(await self._send("GET", "model"))
        return facts

    async def _send(self, method: str, path: str, params: Mapping[str, Any] | None = None, **body: Any) -> bytes:
        for attempt in range(1, self.tries + 1):
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.request(
                    method, path, params=_query(params or {}), headers=_type(body), **body
                )
            except httpx.TransportError as error:
                outcome = error
            wait = self._wait(attempt, outcome)
            if wait is None:
                break
            await asyncio.sleep(wait)
        return _content(outcome)

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def retry_after(value: str) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date; None where it holds neither."""
    try:
        return max(float(int(value)), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _bytes(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()


def _files(pictures: Iterable[Picture]) -> Sequence[tuple[str, tuple[str, bytes]]]:
    """Multipart fields, named after their files."""
    return [
        ("images", (f"{n}" if isinstance(picture, bytes) else Path(picture).name, _bytes(picture)))
        for n, picture in enumerate(pictures)
    ]


def _query(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _type(body: Mapping[str, Any]) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream"} if "content" in body else {}


def _content(outcome: httpx.Response | httpx.TransportError) -> bytes:
    if isinstance(outcome, httpx.TransportError):
        raise CaptionError(f"no answer: {outcome or type(outcome).__name__}") from outcome
    _raise_for_problem(outcome)
    return outcome.content


def _raise_for_problem(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        problem = response.json()
        raise CaptionError(problem["detail"], response.status_code, problem["code"], problem["request_id"])
    except (ValueError, KeyError, TypeError):  # a proxy's answer, not the service's
        detail = f"the server answered {response.status_code} {response.reason_phrase}"
        raise CaptionError(detail, response.status_code, "not_the_service") from None
