"""How many CPU threads this process may keep busy, and where."""

import math
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_quota(cgroup: Path = CGROUP) -> int:
    """CPUs by the container's quota (cgroup v2, then v1) and the affinity mask, not the host's count; at least 1."""
    return max(1, math.ceil(_cpus(cgroup)))


def _cpus(cgroup: Path) -> float:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return available
    if quota in ("max", "-1"):
        return available
    return min(available, int(quota) / int(period))


def own_cpus(threads: int, cgroup: Path = CGROUP) -> list[int] | None:
    """A CPU for each of `threads`, if this process may use exactly as many and all of their time; else None."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0))
    return cpus if 1 < threads == len(cpus) == _cpus(cgroup) else None


def multiplies_8_bits(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether sums of 8-bit products are one instruction here (VNNI, AMX), and oneDNN is not told to do without.

    Without it 8-bit sums would overflow, or take as long as floats.
    """
    if platform.machine() != "x86_64":  # an emulated processor may be shown the flags of the one below it
        return False
    if not _allowed("VNNI", "BF16", "FP16", "AMX", "AVX10"):
        return False
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return False
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(flags)


def may_use_bf16() -> bool:
    """Whether oneDNN is not told to do without bf16: OpenVINO asks the processor alone, and then finds no kernel."""
    return _allowed("BF16", "FP16", "AMX", "AVX10")


def _allowed(*instructions: str) -> bool:
    """Whether what oneDNN is told to keep to, if anything, holds any of these instruction sets.

    The names of the limits say what they add last, and each holds all before it: AVX512_CORE_BF16 has VNNI.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return not limit or any(word in limit for word in (*instructions, "ALL", "DEFAULT"))


def pin_thread(cpus: Iterable[int]) -> None:
    """Let the calling thread run nowhere else."""
    with suppress(OSError):  # forbidden, or a CPU that was taken away: then it runs where it may
        os.sched_setaffinity(0, cpus)
