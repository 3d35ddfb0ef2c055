from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.runtime import load_engine
from model.runtime.openvino_engine import OpenVINOEngine
from training import process
from training.process import native

_SCRIPT = """
import resource, sys
import torch
from training.process import configure_process

if sys.argv[1] == "settled":
    configure_process()
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


def test_auto_is_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(process, "_cpu_has_bf16", lambda has=has: has)
        assert native("auto", cpu) == expected
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has: has)
        assert native("auto", torch.device("cuda")) == expected
        assert [native(precision, cpu) for precision in ("bf16", "fp32")] == ["bf16", "fp32"]


def test_the_processor_is_asked_as_the_engine_asks(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, "cpu", "openvino")
    assert isinstance(engine, OpenVINOEngine)
    assert process._cpu_has_bf16() == (engine._encoder_precision == "bf16")


@pytest.mark.parametrize("there", [False, True])
def test_a_gpu_is_taken_where_there_is_one_unless_named(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert process.device_of("auto") == torch.device("cuda" if there else "cpu")
    assert process.device_of("cpu") == torch.device("cpu")
