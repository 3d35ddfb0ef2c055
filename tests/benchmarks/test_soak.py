from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.soak import FORMATS, Tally, bomb, check, draw
from model import images
from model.errors import TooLarge


def tally() -> Tally:
    return Tally(statuses=Counter({200: 90, 413: 5}), hang_ups=5, settled=[100.0, 124.0])


def test_a_run_in_which_everything_held() -> None:
    assert check(tally(), {200: 91, 413: 5, 499: 4}) == []  # one answer was ready before its client left


@pytest.mark.parametrize(
    ("served", "settled", "wrong", "word"),
    [
        ({200: 90, 413: 5, 499: 4, 500: 1}, [100.0, 100.0], [], "500"),
        ({200: 89, 413: 5, 499: 5}, [100.0, 100.0], [], "add up"),
        ({200: 90, 413: 5, 499: 6}, [100.0, 100.0], [], "add up"),
        ({200: 90, 413: 5, 499: 5}, [100.0, 126.0], [], "grew"),
        ({200: 90, 413: 5, 499: 5}, [100.0, 100.0], ["picture 3: 'x' is not 'y'"], "picture 3"),
    ],
)
def test_what_did_not_hold_is_told(served: dict[int, int], settled: list[float], wrong: list[str], word: str) -> None:
    seen = tally()
    seen.settled, seen.wrong = settled, wrong
    [line] = check(seen, served)
    assert word in line


def test_its_pictures_are_pictures_and_its_bomb_is_one() -> None:
    found = {images.read(draw(seed), 10**6, 64).format for seed in range(len(FORMATS))}
    assert found == set(images.FORMATS) - {"HEIF"}  # which nothing here writes
    with pytest.raises(TooLarge):
        images.read(bomb(), 10**6, 64)
