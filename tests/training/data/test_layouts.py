"""Which of the files in a folder has its captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.data.files import captions, jpeg, names, write, write_pictures
from training.data import DataError, read


def test_several_tables_are_parts_or_refused(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("validation", "b"), ("test", "c")):
        write(tmp_path / f"{split}.csv", f"image,caption\n{name}.jpg,A dog\n")
        write(tmp_path / f"{name}.jpg", jpeg())
    data = read(tmp_path)
    assert [names(data, split) for split in ("train", "val", "test")] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]
    write(tmp_path / "notes.csv", "image,caption\na.jpg,A cat\n")
    with pytest.raises(DataError, match=r"which of the tables notes\.csv, test\.csv, .* has the captions\?"):
        read(tmp_path)
    write(tmp_path / "captions.csv", "image,caption\na.jpg,A cat\n")
    assert captions(read(tmp_path)) == {"a.jpg": ("A cat",)}


def test_metadata_of_an_image_folder_with_parts(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / split / "metadata.csv", "file_name,text\n1.jpg,A dog\n")
        write(tmp_path / split / "1.jpg", jpeg())
    data = read(tmp_path)
    assert {picture.name: picture.split for picture in data.pictures} == {
        "train/1.jpg": "train", "validation/1.jpg": "val", "test/1.jpg": "test",
    }  # fmt: skip
    for picture in data.pictures:
        assert picture.path == tmp_path / picture.name


def test_pictures_that_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set" / "captions.csv", "image,caption\na.jpg,A dog\nb.jpg,A cat\n")
    write(tmp_path / "set" / "a.jpg", jpeg("blue"))
    write_pictures(tmp_path / "else" / "where", "a.jpg", "b.jpg", "c.jpg")
    with pytest.raises(DataError, match="images=else: no such folder"):
        read(f"{tmp_path / 'set'}:images=else,val=1")
    monkeypatch.chdir(tmp_path)
    data = read("set:images=else,val=1")
    assert {picture.path.parent.name for picture in data.pictures} == {"where"}
    assert len(data.split("val")) == 1
    assert not data.skipped


def test_nothing_that_fits_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "Bilder" / "a.jpg", jpeg())
    write(tmp_path / "notes.md", "#")
    with pytest.raises(
        DataError,
        match=r"found no captions\. Looked for: .*metadata\.csv.*captions\.csv.*\.parquet.*\.tar.*"
        r"\.txt or \.caption beside.*1 picture \(Bilder/a\.jpg\) and 1 other file \(notes\.md\)",
    ):
        read(tmp_path)


def test_what_is_missing_is_named_with_where_it_was_looked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "captions.csv", "image,caption\na.jpg,A dog\nfort.jpg,Weg\n")
    write(tmp_path / "a.jpg", jpeg())
    data = read(tmp_path)
    assert data.skipped == {"no picture": 1}
    assert f"1 with no picture, such as 'fort.jpg' (looked for below {tmp_path}, where 1 picture lies" in caplog.text
