from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from caption_client.outcome import map_ahead


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 8))
def test_it_is_map_and_never_too_far_ahead(count: int, window: int) -> None:
    taken = 0

    def items() -> object:
        nonlocal taken
        for item in range(count):
            taken += 1
            yield item

    with ThreadPoolExecutor(2) as pool:
        got = []
        for result in map_ahead(pool, lambda item: 2 * item, items(), window):  # type: ignore[arg-type]
            got.append(result)
            assert taken - len(got) < window
    assert got == [2 * item for item in range(count)]


def test_what_waits_is_not_begun_once_nobody_asks() -> None:
    begun: list[int] = []
    go = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        assert item == 0 or go.wait(60)

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, work, range(100), 50)
        next(results)
        results.close()  # type: ignore[attr-defined]
        go.set()
    assert begun in ([0], [0, 1])  # which the thread may have been at
