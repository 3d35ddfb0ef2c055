from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import torchvision_compat

ROOT = Path(__file__).parents[2]


def test_models_run_where_compiled_operators_may_be_missing() -> None:
    made = torchvision_compat.torchvision.models.resnet18(weights=None).eval()  # type: ignore[attr-defined]
    with torch.inference_mode():
        assert made(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_the_missing_operators_are_defined_and_it_is_imported_again() -> None:
    """In a process of its own: an operator is defined once."""
    code = (
        "import importlib, types\n"
        "first, whole = [], importlib.import_module\n"
        "def failing(name, *rest):\n"
        "    if name != 'torchvision':\n"
        "        return whole(name, *rest)\n"
        "    if not first:\n"
        "        first.append(name)\n"
        "        raise RuntimeError('operator torchvision::nms does not exist')\n"
        "    return types.ModuleType('torchvision')\n"
        "importlib.import_module = failing\n"
        "import torch\n"
        "from model.torchvision_compat import torchvision\n"
        "assert torchvision.__name__ == 'torchvision' and first\n"
        "assert 'iou_threshold' in str(torch.ops.torchvision.nms.default._schema)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_any_other_mistake_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(name: str) -> object:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(importlib, "import_module", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        torchvision_compat._import_torchvision()
