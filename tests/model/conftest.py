from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint import save_captioner
from tests.conftest import Once
from tests.model.tiny import captioner
from training.finishing.export import export


@pytest.fixture(scope="session")
def checkpoint(once: Once) -> Path:
    """A tiny checkpoint with its graphs; not to be changed."""

    def fill(folder: Path) -> None:
        card = {"data": {"name": "nothing"}, "limits": ["says nonsense"]}
        save_captioner(captioner(sentinel=True), folder / "tiny", card)
        export(folder / "tiny")

    return once("checkpoint", fill) / "tiny"
