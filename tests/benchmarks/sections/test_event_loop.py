from __future__ import annotations

import pytest

from benchmarks.sections.event_loop import DECODERS, LANES, OTHERS, REST, shares
from benchmarks.stages import STAGES
from benchmarks.timing import Sample


def test_the_rows_are_all_that_was_used_and_nothing_twice() -> None:
    first, second = list(STAGES)[:2]
    before = {"stages": {first: 1.0}, "loop": 5.0, "lanes": 10.0, "process": 20.0}
    after = {"stages": {first: 1.5, second: 0.25}, "loop": 7.0, "lanes": 14.0, "process": 27.0}
    rows = shares(before, after, Sample(wall=9, cpu=10))
    assert (rows[first], rows[second]) == (0.5, 0.25)
    assert (rows[REST], rows[LANES], rows[OTHERS], rows[DECODERS]) == (1.25, 4, 1, 3)
    assert sum(rows.values()) - rows["whole"] == pytest.approx(rows["whole"]) == 10
