from __future__ import annotations

from tests.model.conftest import checkpoint

__all__ = ["checkpoint"]
