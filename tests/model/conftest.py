from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint import save_captioner
from tests.model.tiny import captioner
from training.finishing.export import export


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with its graphs; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_captioner(captioner(sentinel=True), folder, {"data": {"name": "nothing"}, "limits": ["says nonsense"]})
    export(folder)
    return folder
