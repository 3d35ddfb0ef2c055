from __future__ import annotations

import json
from typing import Any

from benchmarks import report


def record(cpu: str, instructions: str, ms: float) -> dict[str, Any]:
    row = {"name": "this engine", "min_ms": ms, "median_ms": ms + 1, "cpu_ms": ms + 2, "ratio": 1}
    machine = {"cpu": cpu, "instructions": instructions, "cores": 2, "python": "3.11", "packages": {"numpy": "2"}}
    return {"machine": machine, "model": "m 1", "pictures": "drawn", "tokens": 9, "beam": 3, "engines": [row]}


def test_each_processor_has_a_part_of_its_own() -> None:
    page = report.markdown([record("New", "AVX2", 7), record("Old", "AMX", 5)])
    new, old = page.split("## New: AVX2")[1].split("## Old: AMX")
    assert "| this engine | 7 | 8 | 9 | 1 |" in new
    assert "| this engine | 5 | 6 | 7 | 1 |" in old


def test_the_same_processor_with_fewer_instructions_is_another() -> None:
    assert report.processor(record("A", "AVX2", 1)) != report.processor(record("A", "AMX", 1))
    assert report.processor(record("A", "AVX2", 1)) == report.processor(record("A", "AVX2", 9))


def test_what_protocols_add_to_a_start_is_said_where_it_was_measured() -> None:
    cost = {"min": 1.5, "median": 1.6}
    start = {"starts": 2, "cpu_s": cost, "wall_s": cost, "rss_mb": 320, "rss_after_100_mb": 340, "requests": 9,
             "rss_after_all_mb": 341}  # fmt: skip
    before = {**record("A", "AMX", 5), "start_up": start}
    times = {"cpu_s": 1.004, "rss_mb": 1.001, "rss_after_100_mb": 0.998, "p50_ms": 1.012}
    assert "protocols" not in report.markdown([before])
    page = report.markdown([{**before, "start_up": {**start, "protocols": times}}])
    assert "a start takes 1.004 times the CPU" in page
    assert "at most 1.012 times as long" in page


def test_the_record_in_docs_names_each_processor_once() -> None:
    records = json.loads(report.BENCHMARKS.read_text())
    processors = [report.processor(record) for record in records]
    assert len(set(processors)) == len(processors) > 0
