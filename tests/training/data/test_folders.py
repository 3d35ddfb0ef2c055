from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.data.files import captions, jpeg, names, write, write_tar
from training.data import read


def test_captions_beside_the_pictures(tmp_path: Path) -> None:
    for name in ("train/a.jpg", "train/b.png", "val/c.jpg", "train/lonely.jpg"):
        write(tmp_path / name, jpeg())
    write(tmp_path / "train/a.txt", "A dog\nA pet\n")
    write(tmp_path / "train/b.png.caption", "A boat")
    write(tmp_path / "val/c.txt", "A cat")
    data = read(tmp_path)
    assert captions(data) == {"train/a.jpg": ("A dog", "A pet"), "train/b.png": ("A boat",), "val/c.jpg": ("A cat",)}
    assert names(data, "val") == ["val/c.jpg"]
    assert data.skipped == {"no captions": 1}


@pytest.mark.parametrize("whole_folder", [True, False])
def test_webdataset(tmp_path: Path, whole_folder: bool) -> None:
    first, second = jpeg(), jpeg()
    tar = write_tar(tmp_path / "train-000.tar", {
        "x/0.jpg": first, "x/0.txt": b"A dog", "x/0.json": b'{"caption": "alt text", "width": 8}',
        "x/1.jpg": second, "x/1.json": '{"caption": "Bäume"}'.encode(), "x/2.jpg": jpeg(), "x/2.cls": b"3",
    })  # fmt: skip
    write_tar(tmp_path / "val-000.tar", {"x/0.jpg": jpeg(), "x/0.txt": b"A cat"})
    data = read(tmp_path if whole_folder else tar)
    assert data.pictures[0].captions == ("A dog",)
    assert data.pictures[1].captions == ("Bäume",)
    assert [picture.read_bytes() for picture in data.pictures[:2]] == [first, second]
    assert data.skipped == {"no captions": 1}
    if whole_folder:
        assert names(data, "train") == ["train-000/x/0.jpg", "train-000/x/1.jpg"]
        assert names(data, "val") == ["val-000/x/0.jpg"]
