"""How many CPU threads this process may keep busy."""

import math
import os
from pathlib import Path


def cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs by the container's quota (cgroup v2, then v1) and the affinity mask, not the host's count; at least 1."""
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
    return max(1, min(available, math.ceil(int(quota) / int(period))))
