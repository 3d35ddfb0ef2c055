"""What figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What it was measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    packages = ("numpy", "openvino", "pillow", "fastapi", "uvicorn", "torch", "litserve", "transformers", "onnxruntime")
    return {
        "cpu": model,
        "instructions": fastest(cpu_flags()),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def cpu_flags() -> set[str]:
    """What this processor has, in Linux's words."""
    info = Path("/proc/cpuinfo")
    return set(info.read_text().split()) if info.exists() else set()


def fastest(flags: set[str]) -> str:
    """The instructions that matter here of those that a processor has, by Linux's description of it."""
    names = {"amx_int8": "AMX", "avx512_bf16": "AVX-512 bf16", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX2 VNNI"}
    found = [name for flag, name in names.items() if flag in flags]
    return ", ".join(found) or next((n for f, n in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if f in flags), "none")
