from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys
import torch
from training.process import settle

if sys.argv[1] == "settled":
    settle()
print(float(torch.tensor([1e-40]).mul(1.0)))

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 2**20

before = resident()
block = torch.ones(200 * 2**18)  # 200 MiB
del block
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_denormals_are_flushed_and_freed_memory_is_kept() -> None:
    def run(how: str) -> tuple[float, int]:
        done = subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True)
        denormal, kept = done.stdout.split()
        return float(denormal), int(kept)

    denormal, kept = run("settled")
    assert denormal == 0
    assert kept > 150
    denormal, kept = run("as it was")
    assert denormal > 0
    assert kept < 50
