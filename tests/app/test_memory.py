from __future__ import annotations

from app.memory import needed_mb
from app.settings import Settings


def test_more_of_anything_needs_more_memory() -> None:
    needed = needed_mb(Settings(), 2)
    for name, value in (("workers", 2), ("threads", 4), ("decode_workers", 5), ("upload_memory_mb", 512),
                        ("decode_memory_mb", 2048)):  # fmt: skip
        assert needed_mb(Settings(**{name: value}), 2) > needed, name  # type: ignore[arg-type]
    assert needed_mb(Settings(), 64) == needed_mb(Settings(), 8)  # threads beyond that hold no copy
