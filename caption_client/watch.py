"""Captions what arrives in folders, as long as it runs.

Folders are looked through again and again, which works on every file system, network shares too, and says when a
picture is complete: its size and its time are then the same as a look before.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from caption_client import files
from caption_client.client import CaptionError
from caption_client.summary import say

INTERVAL = 2.0  # seconds between two looks, if the last one took little of them
LONGEST = 60.0  # seconds between two tries, while the service is away
LATER = (0, 429, 502, 503)  # statuses of a service that is away or busy, and will be back

State = tuple[int, int]  # of a file: bytes and the time of its last change


class Named(Protocol):
    """What became of a picture."""

    @property
    def name(self) -> str: ...


Found = TypeVar("Found", bound=Named)


class Arrivals:
    """The pictures in folders, told once when each is complete, and again when it has changed."""

    def __init__(self, find: Callable[[], Iterable[str]]) -> None:
        self._find = find
        self._last: dict[str, State] = {}
        self._done: dict[str, State] = {}

    def scan(self) -> list[str]:
        """Look again: what is complete and not done."""
        now = {name: state for name in self._find() if (state := _state(name)) is not None}
        ready = [
            name
            for name, state in now.items()
            if state[0] and state == self._last.get(name) and state != self._done.get(name)
        ]
        self._last = now
        self._done = {name: state for name, state in self._done.items() if name in now}
        return ready

    def unchanged(self, name: str) -> bool:
        """Whether the picture is still as it was when it was last looked at."""
        return _state(name) == self._last[name]

    def done(self, name: str) -> None:
        """Not to be told again as it is now, which may be with our text in it."""
        if (state := _state(name)) is not None:
            self._done[name] = state


def watch(
    find: Callable[[], Iterable[str]],
    wanted: Callable[[str], bool],
    caption: Callable[[Iterable[str]], Iterator[Found]],
    handle: Callable[[Found], None],
    interval: float = INTERVAL,
) -> None:
    """Caption what `find` finds and is `wanted`, and `handle` what comes of it, until `KeyboardInterrupt` or SIGTERM.

    A service that is away is waited for; what it may not have done is asked again. Raises other `CaptionError`s.
    """
    arrivals = Arrivals(find)

    def new(names: list[str]) -> Iterator[str]:
        for name in names:
            if wanted(name):
                yield name
            else:
                arrivals.done(name)

    away = 0
    with _stopped_by_sigterm():
        while True:
            start = time.monotonic()
            try:
                for outcome in caption(new(arrivals.scan())):
                    if arrivals.unchanged(outcome.name):  # or else it is gone, or will be told again
                        handle(outcome)
                        arrivals.done(outcome.name)
                    away = 0
            except CaptionError as error:
                if error.status not in LATER:
                    raise
                if not away:
                    say(f"waiting for the service: {error}")
                away += 1
            took = time.monotonic() - start
            time.sleep(min(max(interval, took) * 2.0 ** min(away, 10), max(LONGEST, interval)))


def find(paths: Iterable[str], suffixes: tuple[str, ...], trouble: files.Trouble) -> Iterator[str]:
    """As `files.find`; a folder or file that is not there, or goes while it is looked through, may come (back)."""
    for path in paths:
        if os.path.lexists(path):
            yield from files.find([path], trouble, suffixes=suffixes)


def _state(name: str) -> State | None:
    try:
        stat = os.stat(name)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM, with which services are stopped, is as Ctrl-C here; both end at a picture's end, never within one."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
