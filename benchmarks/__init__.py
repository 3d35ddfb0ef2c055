"""Measures this project against other ways of doing the same; see `scripts/bench --help`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "model" / "weights" / "default"
