from __future__ import annotations

import mmap
import os

from app.pictures.guard import cpu_seconds
from benchmarks.hostile import Cost, bounded, forget_peak, memory_mb
from benchmarks.pictures import hostile, many_scans
from model import images


def test_what_a_process_uses_is_seen() -> None:
    pid = os.getpid()
    forget_peak(pid)
    held, cpu = memory_mb(pid, "VmRSS"), cpu_seconds(pid)
    taken = 50_000_000
    with mmap.mmap(-1, taken) as fresh:  # the heap might give what others have freed, which is held already
        for page in range(0, taken, mmap.PAGESIZE):
            fresh[page] = 1
    assert memory_mb(pid, "VmHWM") - held > 0.9 * taken / 1e6
    assert cpu_seconds(pid) > cpu
    forget_peak(pid)
    assert memory_mb(pid, "VmHWM") - held < 0.9 * taken / 1e6


def test_its_files_may_be_uploaded_and_begin_as_pictures_do() -> None:
    for kind, data in hostile().items():
        assert len(data) <= 20_000_000, kind
        assert images.sniff(data) == kind.replace(",", " ").split()[0]
    assert images.read(many_scans(2000, 2), 10**7, 64).width == 2000


def test_the_worst_is_what_is_bounded() -> None:
    found = [Cost("a", 1, 200, 0.1, 20, 90), Cost("b", 1, 422, 0.1, 80, 10)]
    lines = bounded(found, [0.1] * 99 + [3.0], 2.5, [10, 90, 20])
    assert [line.value for line in lines] == [80, 90, 0.1, 2.5, 20]
    assert all(line.value <= line.most for line in lines)
