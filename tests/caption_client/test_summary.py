from __future__ import annotations

import contextlib
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from caption_client.summary import FAILED, KEPT, KINDS, LISTED, NOTHING, REVIEW, SKIPPED, Summary

COUNTS = st.dictionaries(st.sampled_from(KINDS), st.integers(1, 3 * LISTED))


def told(summary: Summary, dry_run: bool = False) -> list[str]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        summary.report(dry_run)
    return said.getvalue().splitlines()


@settings(deadline=None)
@given(COUNTS, st.integers(0, 50))
def test_every_failure_is_listed_and_of_other_kinds_the_first(counts: dict[str, int], captioned: int) -> None:
    summary = Summary()
    summary.captioned = captioned + counts.get(NOTHING, 0)
    for kind, count in counts.items():
        for n in range(count):
            summary.add(kind, f"{kind[:4]}-{n}.jpg", "why")
    lines = told(summary)
    for kind, count in counts.items():
        listed = [line for line in lines if line.startswith(f"  {kind[:4]}-") and line.endswith(": why")]
        alike = [other for other in counts if other[:4] == kind[:4]]
        most = [counts[other] if other == FAILED else min(counts[other], LISTED) for other in alike]
        assert len(listed) == sum(most)
        assert any(f"{count} of " in line and kind in line for line in lines)
    assert summary.failed == (FAILED in counts)
    if counts:
        done, skipped, failed = captioned, counts.get(SKIPPED, 0) + counts.get(NOTHING, 0), counts.get(FAILED, 0)
        total = done + skipped + failed
        assert lines[-1] == f"caption: {total} pictures: {done} captioned, {skipped} skipped, {failed} failed"


def test_one_picture_that_went_well_is_not_talked_of() -> None:
    summary = Summary()
    summary.captioned = 1
    assert told(summary) == []


def test_a_run_without_end_tells_failures_when_they_happen_and_what_it_cannot_see_once() -> None:
    summary = Summary(at_once=True)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        summary.add(FAILED, "a.jpg", "damaged")
        summary.add(REVIEW, "b.jpg")
        summary.add(KEPT, "c.jpg")
        for _ in range(3):
            summary.not_looked_into("deep", "no permission")
    assert said.getvalue().splitlines() == [
        "caption: failed: a.jpg: damaged",
        "caption: not looked into: deep: no permission",
    ]
    assert summary.failed
    assert [line for line in told(summary, dry_run=True) if line.startswith("  ")] == []
