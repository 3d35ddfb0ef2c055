from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.data.files import jpeg, write


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    """Four pictures in Flickr's layout, one a split and one on no list."""
    folder = tmp_path / "flickr8k"
    lines = ["a.jpg,A dog , a cat and a ball .", "a.jpg,Two pets", "b.jpg,A man", "c.jpg,A boat", "d.jpg,A tree"]
    write(folder / "captions.txt", "\n".join(["image,caption", *lines, ""]))
    for name in "abcd":
        write(folder / "Images" / f"{name}.jpg", jpeg())
    for word, name in (("train", "a"), ("dev", "b"), ("test", "c")):
        write(folder / f"Flickr_8k.{word}Images.txt", f"{name}.jpg\n")
    return folder
