from __future__ import annotations

from benchmarks.sections.instructions import LIMITS, started


def test_engines_with_fewer_instructions_caption_when_they_are_asked() -> None:
    with started(None) as processes:
        assert processes.keys() == LIMITS.keys()
        for process in processes.values():
            assert process.turn().wall > 0
        assert processes["exact"].precision == processes["avx2"].precision == "f32"
