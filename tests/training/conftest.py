from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from model.captioner import Captioner
from tests.model.conftest import checkpoint
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
