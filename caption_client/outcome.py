"""What comes of a picture on the command line, whoever captions it: a server, or the model in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from caption_client.answers import Caption, Image, Tag

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One picture's captions, best first, or why there are none."""

    name: str
    captions: list[Caption]
    image: Image | None = None
    error: str | None = None
    alt: str | None = None  # None where a service does not say; the others are as in `answers.Answer`
    review: bool = False
    decorative: bool = False
    tags: list[Tag] | None = None


def map_ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], window: int) -> Iterator[B]:
    """As `map`, in order, but never more than `window` items ahead of what was asked for."""
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
