from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.training.data.files import captions, jpeg, write, write_pictures
from training.data import DataError, read

EXPECTED = {
    "a.jpg": ("Ein Hund, der rennt.", 'Zwei\nZeilen "hier"'.replace("\n", " ")),
    "b, c.jpg": ("Ein Mann",),
    "d.jpg": ("Bäume | und; mehr",),
}
ROWS = [
    ("a.jpg", "Ein Hund, der rennt."), ("a.jpg", 'Zwei\nZeilen "hier"'), ("b, c.jpg", "Ein Mann"),
    ("d.jpg", "Bäume | und; mehr"),
]  # fmt: skip


def as_csv(delimiter: str, *header: str) -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [delimiter.join(header)] if header else []
    return "\r\n".join([*lines, *(delimiter.join(map(cell, row)) for row in ROWS), ""])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("captions.csv", as_csv(",", "image", "caption")),
        ("captions.csv", "\ufeff" + as_csv(";", "Bild", "Beschreibung")),
        ("captions.csv", as_csv(",", "plaatje", "bijschrift")),
        ("captions.csv", as_csv(",")),
        ("captions.tsv", as_csv("\t", "filepath", "title")),
        ("train_list.csv", as_csv("\t", "filepath", "title")),
        ("bilder.csv", as_csv("|", "file name", "Caption")),
        ("captions.txt", as_csv(",", "image", "caption")),
        ("metadata.csv", as_csv(",", "file_name", "text")),
        ("captions.jsonl", "\n".join(json.dumps({"image": i, "caption": c}) for i, c in ROWS)),
        ("metadata.jsonl", "\n".join(json.dumps({"file_name": i, "captions": c}) for i, c in EXPECTED.items())),
        ("dataset.json", json.dumps([{"image": i, "caption": list(c)} for i, c in EXPECTED.items()])),
    ],
)
@pytest.mark.parametrize("whole_folder", [True, False])
def test_tables(tmp_path: Path, file: str, text: str, whole_folder: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_pictures(tmp_path / "Images", *EXPECTED)
    (tmp_path / file).write_bytes(text.encode())
    data = read(f"{tmp_path if whole_folder else tmp_path / file}:val=0")
    assert captions(data) == EXPECTED
    assert {picture.split for picture in data.pictures} == {"train"}
    assert not data.skipped
    assert ("read as" in caplog.text and file in caplog.text) is whole_folder


def test_columns_of_several_captions_and_of_splits(tmp_path: Path) -> None:
    lines = ["id,split,image_path,caption_1,caption_2", "1,training,a.jpg,one,two", "2,Validation,b.jpg,three,",
             "3,test,c.jpg,four,five", "4,spare,d.jpg,six,"]  # fmt: skip
    write(tmp_path / "captions.csv", "\n".join(lines))
    write_pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    data = read(tmp_path)
    assert captions(data) == {"a.jpg": ("one", "two"), "b.jpg": ("three",), "c.jpg": ("four", "five")}
    assert [picture.split for picture in data.pictures] == ["train", "val", "test"]
    assert data.skipped == {"no split": 1}


def test_a_column_of_lists_as_json(tmp_path: Path) -> None:
    write(
        tmp_path / "captions.csv", 'raw,split,filename\n"[""A dog"", ""A pet""]",val,a.jpg\n"[sic] A cat",train,b.jpg\n'
    )
    write_pictures(tmp_path, "a.jpg", "b.jpg")
    assert captions(read(tmp_path)) == {"a.jpg": ("A dog", "A pet"), "b.jpg": ("[sic] A cat",)}


def test_captions_with_commas_and_quotes_but_none_around_them(tmp_path: Path) -> None:
    lines = ["image;caption", 'a.jpg;A "big" dog; it runs', 'b.jpg;"Cows in a field', 'c.jpg;A sign says "go"']
    write(tmp_path / "captions.csv", "\n".join(lines))
    write_pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert captions(read(f"{tmp_path}:val=0")) == {
        "a.jpg": ('A "big" dog; it runs',), "b.jpg": ('"Cows in a field',), "c.jpg": ('A sign says "go"',),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,caption,stars\n1,A dog,5\n", r"looked for a column of pictures .* it begins 'id,caption,stars'"),
        ("image,stars,place\na.jpg,5,here\n", r"looked for .* among the columns 'image', 'stars', 'place'"),
        ("image,caption\n,A dog\n", "record 1: no name of a picture in 'image'"),
        ("image,caption,split\na.jpg,x,train\na.jpg,y,val\n", "record 2: a.jpg is already in the split train"),
        ('image,caption\na.jpg,"A dog\nb.jpg\n', r"line 3: expected 'image,caption', not 'b\.jpg' \(as CSV: line"),
    ],
)
def test_tables_that_cannot_be_read_say_why(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "captions.csv", text)
    write(tmp_path / "a.jpg", jpeg())
    with pytest.raises(DataError, match=message):
        read(tmp_path)
