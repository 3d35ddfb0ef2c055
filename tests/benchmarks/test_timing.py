from __future__ import annotations

import pytest

from benchmarks.timing import percentile


@pytest.mark.parametrize(("percent", "value"), [(1, 1), (50, 50), (99, 99), (100, 100)])
def test_a_percentile_is_one_of_the_values(percent: int, value: int) -> None:
    assert percentile(range(100, 0, -1), percent) == value
    assert percentile([7.0], percent) == 7
