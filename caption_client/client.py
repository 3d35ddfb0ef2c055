"""A client of the service, plain and async, that waits and tries again when the service asks for it."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast

import httpx

from caption_client import answers
from caption_client.answers import Answer, Problem, Result, Results

logger = logging.getLogger("caption_client")

Picture = bytes | str | Path  # its bytes, or where they are
Named = tuple[str, bytes]
T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Transport = TypeVar("Transport")

BUSY = (429, 503)  # nothing was done; trying again is safe and wanted
TOO_LARGE = 413
LONGEST_WAIT = 60.0  # seconds, whatever Retry-After says
CHUNK_BYTES = 8_000_000  # of pictures in one request: within proxies' patience, and a failed one costs little


class CaptionError(Exception):
    """The service answered with a problem (RFC 9457), or not at all (`status` 0)."""

    def __init__(self, detail: str, status: int = 0, code: str = "unreachable", request_id: str = "") -> None:
        super().__init__(detail)
        self.detail, self.status, self.code, self.request_id = detail, status, code, request_id


class _Request(NamedTuple):
    """What is to be sent; `body` as httpx takes it."""

    method: str
    path: str
    params: Mapping[str, Any] = {}
    body: Mapping[str, Any] = {}


Outcome = httpx.Response | httpx.RequestError
# What a client does for one call, whether it blocks or awaits: it is asked to send, or to wait for some seconds.
Steps = Generator[_Request | float, Outcome | None, T]


class _Base(Generic[Http, Transport]):
    """All of both clients but the sending and the waiting themselves, in steps that `_run` takes."""

    _kind: Callable[..., Http]

    def __init__(
        self,
        url: str = "http://localhost:8000",
        api_key: str | None = None,
        timeout: float = 60,
        tries: int = 6,
        transport: Transport | None = None,
    ) -> None:
        if tries < 1:
            raise ValueError("tries must be 1 or more")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("an API key must be printable ASCII: a header carries it")
        self.tries = tries
        self._answered = False  # yet, by whatever is at the address
        self._limits: Mapping[str, float] | None = None
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http: Http = self._kind(base_url=_address(url), headers=headers, timeout=timeout, transport=transport)

    def _one(self, picture: Picture, params: Mapping[str, Any]) -> Steps[Answer]:
        return _answer(Answer, (yield from self._exchange("POST", "caption", params, content=_bytes(picture))))

    def _many(self, pictures: Iterable[Picture], params: Mapping[str, Any]) -> Steps[list[Result]]:
        pictures = list(pictures)
        if len(pictures) > 1 and self._limits is None:
            self._limits = _limits((yield from self._facts()))
        results: list[Result] = []
        for chunk in self._chunks(pictures, self._limits or {}):
            results += yield from self._chunk(chunk, params)
        return results

    def _chunk(self, chunk: list[Named], params: Mapping[str, Any]) -> Steps[list[Result]]:
        try:
            return _results((yield from self._exchange("POST", "captions", params, files=_files(chunk))), chunk)
        except CaptionError as error:
            results: list[Result] = []
            for part in _parts(chunk, error):
                results += yield from self._chunk(part, params)
            return results or [_refused(chunk, error)]

    def _facts(self) -> Steps[dict[str, Any]]:
        return _facts((yield from self._exchange("GET", "model")))

    def _exchange(self, method: str, path: str, params: Mapping[str, Any] | None = None, **body: Any) -> Steps[bytes]:
        """Send a request, again where that is wanted; the content of the answer."""
        attempt = 0
        while True:
            attempt += 1
            outcome = yield _Request(method, path, params or {}, body)
            assert outcome is not None
            wait = self._wait(attempt, outcome)
            if wait is None:
                return _content(outcome)
            yield wait

    def _wait(self, attempt: int, outcome: Outcome) -> float | None:
        """Seconds until the next try, None if `outcome` is final. Captioning changes nothing, so it may be repeated."""
        if isinstance(outcome, httpx.Response):
            self._answered = True
            if outcome.status_code not in BUSY:
                return None
        elif isinstance(outcome, httpx.ReadTimeout):
            return None  # it is working on it; asking twice makes it slower
        elif not isinstance(outcome, httpx.NetworkError | httpx.TimeoutException | httpx.RemoteProtocolError):
            return None  # no matter of time
        elif not self._answered:
            return None  # a wrong address, rather than a service that is being restarted
        if attempt >= self.tries:
            return None
        asked = retry_after(outcome.headers.get("Retry-After", "")) if isinstance(outcome, httpx.Response) else None
        seconds = 0.25 * 2.0**attempt * random.uniform(0.5, 1) if asked is None else asked
        why = f"it answered {outcome.status_code}" if isinstance(outcome, httpx.Response) else _reason(outcome)
        logger.warning("waiting for the service (%s); trying again in %.0f s", why, min(seconds, LONGEST_WAIT))
        return min(seconds, LONGEST_WAIT)

    def _chunks(self, pictures: Sequence[Picture], limits: Mapping[str, float]) -> Iterator[list[Named]]:
        """`pictures`, named after their files or counted, in as many requests as the service's limits want."""
        most = int(limits.get("max_images", 1))
        most_bytes = min(limits.get("max_batch_bytes", CHUNK_BYTES), CHUNK_BYTES)
        chunk: list[Named] = []
        for n, picture in enumerate(pictures):
            named = (
                (f"{n}", picture) if isinstance(picture, bytes) else (Path(picture).name, Path(picture).read_bytes())
            )
            if chunk and (len(chunk) == most or sum(len(data) for _, data in (*chunk, named)) > most_bytes):
                yield chunk
                chunk = []
            chunk.append(named)
        if chunk:
            yield chunk


class CaptionClient(_Base[httpx.Client, httpx.BaseTransport]):
    """Captions pictures over HTTP; one client may be used from several threads.

    url: where the service is, such as `http://localhost:8000`. api_key: if the service needs one.
    timeout: seconds for each step of a request. tries: how often a busy (429, 503) or vanished service is asked
    before `CaptionError` is raised; one that was never there is asked once. transport: httpx's, for tests.
    Raises `ValueError` for an address or a key that cannot be one.
    """

    _kind = httpx.Client

    def caption(self, picture: Picture, **params: Any) -> Answer:
        """One picture's captions; `params` are the query's (num_captions, explain, ...). Raises `CaptionError`."""
        return self._run(self._one(picture, params))

    def captions(self, pictures: Iterable[Picture], **params: Any) -> list[Result]:
        """Any number of pictures: in order, each with its captions or its own error.

        They are sent in as many requests as the service's limits want; raises `CaptionError` where one fails.
        """
        return self._run(self._many(pictures, params))

    def model(self) -> dict[str, Any]:
        """The model's name, limits and card."""
        return self._run(self._facts())

    def _run(self, steps: Steps[T]) -> T:
        said: Outcome | None = None
        try:
            while True:
                step = steps.send(said)
                said = None
                if isinstance(step, _Request):
                    try:
                        said = self._http.request(**_arguments(step))
                    except httpx.RequestError as error:
                        said = error
                else:
                    time.sleep(step)
        except StopIteration as end:
            return cast(T, end.value)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncCaptionClient(_Base[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """`CaptionClient` for asyncio."""

    _kind = httpx.AsyncClient

    async def caption(self, picture: Picture, **params: Any) -> Answer:
        """As `CaptionClient.caption`."""
        return await self._run(self._one(picture, params))

    async def captions(self, pictures: Iterable[Picture], **params: Any) -> list[Result]:
        """As `CaptionClient.captions`."""
        return await self._run(self._many(pictures, params))

    async def model(self) -> dict[str, Any]:
        """As `CaptionClient.model`."""
        return await self._run(self._facts())

    async def _run(self, steps: Steps[T]) -> T:
        said: Outcome | None = None
        try:
            while True:
                step = steps.send(said)
                said = None
                if isinstance(step, _Request):
                    try:
                        said = await self._http.request(**_arguments(step))
                    except httpx.RequestError as error:
                        said = error
                else:
                    await asyncio.sleep(step)
        except StopIteration as end:
            return cast(T, end.value)

    async def close(self) -> None:
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


def _address(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is no address of a service; one is http://localhost:8000")
    return url.rstrip("/") + "/"


def _bytes(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()


def _files(chunk: Sequence[Named]) -> Sequence[tuple[str, Named]]:
    """Multipart fields; a name that is not UTF-8 is sent with question marks."""
    return [("images", (name.encode(errors="replace").decode(), data)) for name, data in chunk]


def _parts(chunk: list[Named], error: CaptionError) -> Sequence[list[Named]]:
    """The halves of what was too large to be taken at once, none of a single picture; else raises `error`."""
    if error.status != TOO_LARGE:
        raise error
    half = len(chunk) // 2
    return [chunk[:half], chunk[half:]] if half else []


def _refused(chunk: list[Named], error: CaptionError) -> Result:
    [(name, _)] = chunk
    return Result(name, error=Problem("about:blank", "", error.status, error.detail, error.code, error.request_id))


def _arguments(request: _Request) -> dict[str, Any]:
    """As httpx takes them."""
    params = {name: value for name, value in request.params.items() if value is not None}
    headers = {"Content-Type": "application/octet-stream"} if "content" in request.body else {}
    return {"method": request.method, "url": request.path, "params": params, "headers": headers, **request.body}


def _content(outcome: Outcome) -> bytes:
    if isinstance(outcome, httpx.RequestError):
        raise CaptionError(f"no answer: {_reason(outcome)}") from outcome
    _raise_for_problem(outcome)
    return outcome.content


def _reason(error: httpx.RequestError) -> str:
    return str(error) or type(error).__name__


def _raise_for_problem(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        problem = answers.read(Problem, response.json())
    except ValueError:  # a proxy's answer, not the service's
        detail = f"the server answered {response.status_code} {response.reason_phrase}"
        if "Location" in response.headers:
            detail += f"; the service may be at {response.headers['Location']}"
        raise CaptionError(detail, response.status_code, "not_the_service") from None
    raise CaptionError(problem.detail, response.status_code, problem.code, problem.request_id)


def _answer(kind: type[T], content: bytes) -> T:
    try:
        return answers.read(kind, json.loads(content))
    except ValueError as error:
        raise CaptionError("what is at this address is not the captioning service", 200, "not_the_service") from error


def _results(content: bytes, chunk: Sequence[Named]) -> list[Result]:
    results = _answer(Results, content).results
    if len(results) != len(chunk):
        raise CaptionError(f"{len(results)} answers for {len(chunk)} pictures", 200, "not_the_service")
    return [Result(name, each.result, each.error) for (name, _), each in zip(chunk, results, strict=True)]


def _facts(content: bytes) -> dict[str, Any]:
    _answer(answers.Model, content)
    facts: dict[str, Any] = json.loads(content)
    return facts


def _limits(facts: Mapping[str, Any]) -> Mapping[str, float]:
    limits = facts.get("limits")
    return limits if isinstance(limits, dict) else {}
