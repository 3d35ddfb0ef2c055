"""Engines that run a checkpoint: `torch` (CUDA or CPU) and `openvino` (CPU, imports no torch); here one is chosen."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from model.errors import EngineUnavailable
from model.runtime.engine import CaptionEngine, Device, Precision, Regions

__all__ = ["CaptionEngine", "Regions", "load_engine"]


def load_engine(
    folder: Path,
    device: Device = "auto",
    engine: Literal["auto", "torch", "openvino"] = "auto",
    threads: int = 0,
    precision: Precision = "auto",
) -> CaptionEngine:
    """Open the checkpoint in `folder` with the best engine for `device`.

    `auto` takes CUDA through torch where torch is installed and sees a GPU, else OpenVINO on the
    CPU. `threads` limits CPU threads (0: as many as the CPU quota allows).
    Raises `CheckpointError` for a bad folder, `EngineUnavailable` where the engine cannot run.
    """
    if engine == "auto":
        engine = "torch" if _wants_torch(device) else "openvino"
    if engine == "torch":
        if importlib.util.find_spec("torch") is None:
            raise EngineUnavailable("the torch engine needs torch: pip install '.[gpu]', or use --device cpu")
        from model.runtime.torch_engine import TorchEngine

        return TorchEngine(folder, device=device, threads=threads, precision=precision)
    if device == "cuda":
        raise EngineUnavailable("OpenVINO runs on the CPU; use --device cpu, or the torch engine for CUDA")
    from model.runtime.openvino_engine import OpenVINOEngine

    return OpenVINOEngine(folder, threads=threads, precision=precision)


def _wants_torch(device: Device) -> bool:
    """True where CUDA was asked for, or `auto` finds a torch that sees a GPU (torch is imported only then)."""
    if device == "cuda":
        return True
    # /dev/nvidiactl exists wherever an NVIDIA driver does: without it, torch's long import is saved.
    if device == "cpu" or not Path("/dev/nvidiactl").exists() or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
