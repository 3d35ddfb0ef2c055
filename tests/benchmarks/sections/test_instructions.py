from __future__ import annotations

from benchmarks.machine import cpu_flags
from benchmarks.sections.instructions import EXACT, PRECISIONS, SETS, available, started
from benchmarks.timing import OURS


def test_a_processor_is_limited_to_what_it_has() -> None:
    assert available({"avx2", "avx512bw", "avx512_vnni", "avx_vnni"}) == list(SETS)
    assert available({"avx2", "avx512bw"}) == [OURS, "avx512", "avx2"]
    assert available(set()) == [OURS]


def test_engines_with_fewer_instructions_do_what_they_are_asked() -> None:
    sets = [name for name in available(cpu_flags()) if name in (OURS, "avx2")]
    with started(None, sets) as processes:
        assert list(processes) == [(name, precision) for name in sets for precision in PRECISIONS]
        for (_, precision), process in processes.items():
            assert precision == "auto" or process.precision == EXACT
            assert process.turn("2").wall > 0
        assert process.turn("many").wall > 0
        assert process.floor() > 0
