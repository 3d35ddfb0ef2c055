from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.model.conftest import checkpoint

__all__ = ["checkpoint"]


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Commands flush denormal numbers for their whole process; here other tests come after, which make them."""
    yield
    torch.set_flush_denormal(False)
