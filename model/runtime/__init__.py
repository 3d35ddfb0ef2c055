"""Engines that run a checkpoint: `torch` (CUDA or CPU) and `openvino` (CPU, imports no torch)."""

from model.runtime.engine import CaptionEngine, Regions, load_engine

__all__ = ["CaptionEngine", "Regions", "load_engine"]
