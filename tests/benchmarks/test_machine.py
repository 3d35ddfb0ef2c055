from __future__ import annotations

import pytest

from benchmarks.machine import fastest


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512f avx512_vnni", "AVX-512 VNNI"),
        ("avx2 avx512f avx512_vnni avx512_bf16 amx_int8", "AMX, AVX-512 bf16, AVX-512 VNNI"),
        ("avx2 avx512f", "AVX-512"),
        ("avx2", "AVX2"),
        ("", "none"),
    ],
)
def test_the_instructions_that_matter_are_named(flags: str, expected: str) -> None:
    assert fastest(set(flags.split())) == expected
