from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.captioner import Captioner
from model.checkpoint import save_captioner
from tests.model.conftest import checkpoint
from tests.model.tiny import captioner as tiny_captioner
from tests.model.tiny import liven
from tests.training import tiny

__all__ = ["checkpoint"]


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Commands flush denormal numbers for their whole process; here other tests come after, which make them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    made = tiny.captioner(tiny.shapes(tmp_path_factory.mktemp("data")))
    with torch.no_grad():
        liven(made.decoder)
    return made.eval()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without graphs; not to be changed."""
    folder = tmp_path_factory.mktemp("plain") / "checkpoint"
    save_captioner(tiny_captioner(), folder, {"data": "none"})
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))
