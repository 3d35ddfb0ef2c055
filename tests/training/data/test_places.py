from __future__ import annotations

import tarfile
import unicodedata
from pathlib import Path

import pytest

from tests.training.data.files import image, jpeg, karpathy, names, write, write_pictures, write_tar
from training.data import DataError, read


@pytest.mark.parametrize(
    ("listed", "file"),
    [
        ("A.JPG", "a.jpg"),
        ("a", "a.jpeg"),
        (unicodedata.normalize("NFC", "Bär.jpg"), unicodedata.normalize("NFD", "Bär.jpg")),
        ("sub\\a.jpg", "sub/a.jpg"),
        ("../out/a.jpg", "../out/a.jpg"),
        ("gone/a.jpg", "here/a.jpg"),
    ],
)
def test_names_that_are_not_quite_the_files(tmp_path: Path, listed: str, file: str) -> None:
    write(tmp_path / "set" / "captions.csv", f"image,caption\n{listed},A dog\nother.jpg,A cat\n")
    write(tmp_path / "set" / file, jpeg())
    write(tmp_path / "set" / "other.jpg", jpeg())
    data = read(f"{tmp_path / 'set'}:val=0")
    assert names(data, "train") == [listed, "other.jpg"]
    assert data.pictures[0].path.resolve() == (tmp_path / "set" / file).resolve()


def test_an_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "far" / "a.jpg", jpeg())
    write(tmp_path / "set" / "list.csv", f"filepath\ttitle\n{file}\tA dog\n")
    assert read(tmp_path / "set" / "list.csv").pictures[0].path == file


def test_a_loose_match_must_be_the_only_one(tmp_path: Path) -> None:
    write(tmp_path / "captions.csv", "image,caption\na,A dog\nb.jpg,A cat\nB.JPG,A cow\n")
    write_pictures(tmp_path, "a.jpg", "a.png", "b.jpg")
    data = read(tmp_path)
    assert [picture.name for picture in data.pictures] == ["b.jpg"]
    assert data.examples["no picture"] == ("a", "B.JPG")


def test_a_tar_cut_off_gives_what_it_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = write_tar(tmp_path / "images.tar", {f"{i}.jpg": jpeg(size=(200, 200), quality=95) for i in range(4)})
    with tarfile.open(tar) as opened:
        third = opened.getmembers()[2].offset_data
    tar.write_bytes(tar.read_bytes()[: third + 100])
    write(tmp_path / "dataset.json", karpathy(*(image(f"{i}.jpg") for i in range(4))))
    data = read(tmp_path, check_pictures=True)
    assert [picture.name for picture in data.pictures] == ["0.jpg", "1.jpg"]
    assert data.skipped == {"no picture": 2}
    assert "damaged tar" in caplog.text


def test_a_compressed_tar_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "images.tar.gz", {"a.jpg": jpeg()}, "w:gz")
    write(tmp_path / "dataset.json", karpathy(image("a.jpg")))
    with pytest.raises(DataError, match="1 with no picture"):
        read(tmp_path)
    assert "images.tar.gz: a compressed tar" in caplog.text


def test_same_base_names_in_different_folders_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "captions.txt", "image,caption\nx/1.jpg,red\ny/1.jpg,blue\nz/1.jpg,gone\n")
    write(tmp_path / "Flickr_8k.trainImages.txt", "x/1.jpg y/1.jpg z/1.jpg")
    write(tmp_path / "Images" / "x" / "1.jpg", jpeg("red"))
    write(tmp_path / "Images" / "y" / "1.jpg", jpeg("blue"))
    data = read(tmp_path)
    assert {p.captions[0]: p.path.parent.name for p in data.pictures} == {"red": "x", "blue": "y"}
    assert data.skipped == {"no picture": 1}


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.jpg", jpeg())
    write(tmp_path / "set" / "dataset.json", karpathy(image("a.jpg")))
    (tmp_path / "set" / "Images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    assert names(read(tmp_path / "set"), "train") == ["a.jpg"]
