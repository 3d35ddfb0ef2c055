"""Every layout, written as its makers write it, reads to the same pictures and captions."""

from __future__ import annotations

import base64
import io
import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.data.files import captions, jpeg, names, write, write_tar
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


# A red picture of 64 x 48 as a telephone writes it.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAB4AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5j"
    "bHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBp"
    "eGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAACZtZGF0AAAAGigBrxOA+BDhp//8TSj/+nXPD9PMe/OikM+A"
)


def as_csv(delimiter: str, *header: str) -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [delimiter.join(header)] if header else []
    return "\r\n".join([*lines, *(delimiter.join(map(cell, row)) for row in ROWS), ""])


def write_pictures(folder: Path, *some: str) -> None:
    for name in some or EXPECTED:
        write(folder / name, jpeg())


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
    write_pictures(tmp_path / "Images")
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


@pytest.mark.parametrize("file", ["Flickr8k.token.txt", "results_20130124.token"])
def test_flickr_tokens(tmp_path: Path, file: str) -> None:
    write(tmp_path / file, "a.jpg#0\tA dog , a cat .\na.jpg#1\tPets\nb.jpg#0\tA man\n")
    write(tmp_path / "Flickr8k.lemma.token.txt", "a.jpg#0\ta dog\n")
    write(tmp_path / "Flickr_8k.trainImages.txt", "a.jpg\n")
    write(tmp_path / "Flickr_8k.testImages.txt", "b.jpg\n")
    write_pictures(tmp_path, "a.jpg", "b.jpg")
    for spec in (tmp_path, tmp_path / file):
        data = read(spec)
        assert captions(data) == {"a.jpg": ("A dog , a cat .", "Pets"), "b.jpg": ("A man",)}
        assert names(data, "test") == ["b.jpg"]


def test_flickr30k_results(tmp_path: Path) -> None:
    lines = ["image_name| comment_number| comment", 'a.jpg| 0| Two "big" dogs .', "a.jpg| 4   A dog runs .",
             "b.jpg| 0| A man | a boat"]  # fmt: skip
    write(tmp_path / "results.csv", "\n".join(lines))
    write_pictures(tmp_path / "flickr30k_images", "a.jpg", "b.jpg")
    assert captions(read(f"{tmp_path}:val=0")) == {
        "a.jpg": ('Two "big" dogs .', "A dog runs ."), "b.jpg": ("A man | a boat",),
    }  # fmt: skip


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


def write_parquet(file: Path, columns: dict[str, Any]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file, row_group_size=2)


def test_parquet_with_pictures_inside(tmp_path: Path) -> None:
    content = [jpeg(size=(i + 1, 2)) for i in range(5)]
    columns = {
        "image": [{"bytes": picture, "path": f"p/{i}.jpg"} for i, picture in enumerate(content)],
        "caption": [["A dog", f"{i} dogs"] for i in range(5)],
    }
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", columns)
    columns = {"image": [{"bytes": jpeg(), "path": None}], "caption": [["A cat"]]}
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", columns)
    data = read(tmp_path, check_pictures=True)
    train = data.split("train")
    assert [picture.read_bytes() for picture in train] == content
    assert [picture.open().size for picture in train] == [(i + 1, 2) for i in range(5)]
    assert train[3].captions == ("A dog", "3 dogs")
    assert train[3].name == "train-00000-of-00001/000003-3.jpg"
    assert names(data, "val") == ["validation-00000-of-00001/000000"]


def test_parquet_that_names_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", {"file_name": ["a.jpg", "a.jpg", "b.jpg"], "text": ["one", "two", "three"]})
    write_pictures(tmp_path, "a.jpg", "b.jpg")
    assert captions(read(f"{tmp_path}:val=0")) == {"a.jpg": ("one", "two"), "b.jpg": ("three",)}


def test_parquet_without_pyarrow_or_broken_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "x.parquet", b"PAR1 no more")
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet"):
        read(file)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"x\.parquet: reading Parquet needs pyarrow \(pip install pyarrow\)"):
        read(file)


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


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_heic_and_avif(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (64, 48), "red")
    if suffix == ".avif":
        image.save(buffer, "AVIF")
        content = buffer.getvalue()
    else:
        content = HEIC
    write(tmp_path / f"a{suffix}", content)
    write(tmp_path / "captions.csv", f"image,caption\na{suffix},A dog\n")
    picture = read(tmp_path, check_pictures=True).pictures[0].open()
    assert picture.size == (64, 48)
    red, green, blue = picture.getpixel((30, 30))  # type: ignore[misc]
    assert red > 230 > 40 > max(green, blue)


def test_nothing_that_fits_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "Bilder" / "a.jpg", jpeg())
    write(tmp_path / "notes.md", "#")
    with pytest.raises(
        DataError,
        match=r"found no captions\. Looked for: .*metadata\.csv.*captions\.csv.*\.parquet.*\.tar.*"
        r"\.txt or \.caption beside.*1 picture \(Bilder/a\.jpg\) and 1 other file \(notes\.md\)",
    ):
        read(tmp_path)


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


def test_what_is_missing_is_named_with_where_it_was_looked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "captions.csv", "image,caption\na.jpg,A dog\nfort.jpg,Weg\n")
    write(tmp_path / "a.jpg", jpeg())
    data = read(tmp_path)
    assert data.skipped == {"no picture": 1}
    assert f"1 with no picture, such as 'fort.jpg' (looked for below {tmp_path}, where 1 picture lies" in caplog.text
