from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.runtime.cpu import cpu_quota, may_use_bf16, multiplies_8_bits, own_cpus, pin_thread


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),  # one and a half: rounded up
        ("50000 100000", 1),
        ("1 100000", 1),
        ("1600000 100000", 8),  # more than the affinity mask allows
    ],
)
def test_cgroup_v2(text: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3), ("10000", 1)])
def test_cgroup_v1(quota: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == expected


def test_without_a_quota_the_affinity_mask_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_quota(tmp_path / "nowhere") == 8
    (tmp_path / "cpu.max").write_text("nonsense")
    assert cpu_quota(tmp_path) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert cpu_quota(tmp_path) == 1


def test_here_it_is_at_least_one() -> None:
    assert cpu_quota() >= 1


@pytest.mark.parametrize(
    ("threads", "quota", "expected"),
    [
        (8, "max", list(range(8))),
        (8, "800000", list(range(8))),
        (8, "750000", None),  # they are somebody else's for a part of the time
        (2, "max", None),
        (9, "max", None),
        (2, "200000", None),
    ],
)
def test_threads_get_a_cpu_each_only_where_they_are_as_many_as_this_process_has_to_itself(
    threads: int, quota: str, expected: list[int] | None, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota} 100000")
    assert own_cpus(threads, tmp_path) == expected


def test_a_single_thread_may_run_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert own_cpus(1, tmp_path) is None


def test_only_the_calling_thread_stays_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    before = os.sched_getaffinity(0)
    one = {min(before)}

    def there() -> set[int]:
        pin_thread(one)
        return os.sched_getaffinity(0)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(there).result() == one
    assert os.sched_getaffinity(0) == before
    pin_thread({100_000})  # no such CPU: nothing happens
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ("fpu avx2 avx512f avx512_vnni", None, True),
        ("fpu avx2 avx_vnni", "", True),
        ("fpu avx512_bf16 amx_int8", "DEFAULT", True),
        ("fpu avx2 avx512f avx512bw", None, False),
        ("fpu avx2 avx512f avx512_vnni", "AVX2", False),
        ("fpu avx2 avx512f avx512_vnni", "AVX512_CORE", False),
        ("fpu avx2 avx512f avx512_vnni", "avx512_core_vnni", True),
    ],
)
def test_8_bit_sums_need_an_instruction_of_their_own(
    flags: str, limit: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert multiplies_8_bits(tmp_path / "cpuinfo") is expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, True), ("AVX512_CORE_BF16", True), ("avx512_core_amx", True), ("ALL", True),
     ("AVX512_CORE_VNNI", False), ("AVX512_CORE", False), ("AVX2_VNNI", False), ("AVX2", False)],
)  # fmt: skip
def test_bf16_is_left_where_it_is_forbidden(limit: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert may_use_bf16() is expected


def test_an_emulated_processor_is_not_the_one_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu avx2 avx512_vnni\n")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not multiplies_8_bits(tmp_path / "cpuinfo")


def test_a_processor_that_says_nothing_of_itself_has_none(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures : fp asimd\n")
    assert not multiplies_8_bits(tmp_path / "cpuinfo")
    assert not multiplies_8_bits(tmp_path / "nowhere")
