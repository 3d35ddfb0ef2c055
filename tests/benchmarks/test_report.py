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


def test_memory_is_a_table_where_it_was_measured_so() -> None:
    cost = {"min": 0.9, "median": 1.0}
    memory = [{"name": "imported", "rss_mb": 131, "pss_mb": None}, {"name": "served", "rss_mb": 260, "pss_mb": 301}]
    start = {"starts": 2, "cpu_s": cost, "wall_s": cost, "memory": memory}
    page = report.markdown([{**record("A", "AMX", 5), "start_up": start}])
    assert "| imported | 131 |  |" in page
    assert "| served | 260 | 301 |" in page


def test_the_record_in_docs_names_each_processor_once() -> None:
    records = json.loads(report.BENCHMARKS.read_text())
    processors = [report.processor(record) for record in records]
    assert len(set(processors)) == len(processors) > 0


def way(name: str, ratio: float, same: int) -> dict[str, Any]:
    return {"name": name, "min_ms": 1, "median_ms": 1, "cpu_ms": 1, "ratio": ratio, "same_exact": same, "of": 200}


def test_a_way_to_decode_is_worth_taking_that_is_faster_and_keeps_the_captions() -> None:
    ours, full = way("ours", 1, 190), way("in full", 2, 200)
    assert "float32: none. The service's keeps 95 %, the best of the others 90 %" in report.worth_taking(
        [ours, way("fast", 0.5, 180), full]
    )
    assert "float32: good." in report.worth_taking([ours, way("good", 0.9, 194), way("slow", 1.1, 199), full])
    assert "float32: none." in report.worth_taking([ours, way("nearly", 0.9, 193), full])


def test_columns_that_no_row_has_are_left_out() -> None:
    plain, counted = way("a", 1, 5), {**way("b", 2, 7), "per_s": 50.0}
    del plain["same_exact"]
    assert report.contenders([plain]).splitlines()[0] == "|  | minimum, ms | median, ms | CPU, ms | times ours |"
    *_, a, b = report.contenders([plain, counted]).splitlines()
    assert a == "| a | 1 | 1 | 1 | 1 |  |  |"
    assert b == "| b | 1 | 1 | 1 | 2 | 50 | 7 of 200 |"


def test_the_cpu_of_a_request_is_summed() -> None:
    rows = [{"name": "form", "cpu_ms": 0.5}, {"name": "lanes", "cpu_ms": 7}]
    loop = {"rows": rows, "whole_ms": 7.5, "plain_ms": 7.4, "requests": 100}
    page = report.markdown([{**record("A", "AMX", 5), "event_loop": {"1": loop, "16": loop}}])
    assert page.count("| sum | 7.5 |") == 2
    assert "### CPU of a request, 16 clients at once" in page


def test_the_sum_of_the_parts_is_compared_with_its_floor() -> None:
    rows = [{"name": name, "min_ms": ms, "median_ms": ms, "floor_ms": floor} for name, ms, floor in
            (("encoder", 3, 1), ("sum", 6, 4))]  # fmt: skip
    assert "is 1.5 times that of the floors" in report.markdown([{**record("A", "AMX", 5), "parts": rows}])
    assert "times that of the floors" not in report.markdown([{**record("A", "AMX", 5), "parts": rows[:1]}])
