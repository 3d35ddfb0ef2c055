"""How a process that trains treats the machine; every command of this package begins with it."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]

# mallopt(3): parameter -> value. Memory that is freed stays with the process: every step needs it again,
# and on a CPU fresh pages cost more than the arithmetic done in them.
_MALLOC = {
    -4: 0,  # M_MMAP_MAX: nothing is given a mapping of its own, which would go back when freed
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: the heap's free end is not given back
    -2: 2**28,  # M_TOP_PAD: the heap grows by so many bytes at least
}


def configure_process() -> None:
    """Flush denormal numbers, a hundred times slower than others on a CPU, and, with glibc, keep freed memory."""
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


def device_of(name: str) -> torch.device:
    """The device that a command's --device names: "auto" is a GPU where there is one."""
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def native(precision: Precision, device: torch.device) -> Precision:
    """ "bf16" or "fp32": what "auto" is on a device, bf16 only where it computes with it natively."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


@cache
def _cpu_has_bf16() -> bool:
    """Asked as the serving engine asks; torch computes with bf16 on any CPU, on most slower than with float32."""
    import openvino as ov  # large: on machines with a GPU it may be missing

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
