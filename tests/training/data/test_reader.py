from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.files import image, jpeg, karpathy, names, write, write_tar
from tests.training.shapes import write_shapes
from training.data import DataError, read


def test_without_splits_all_are_for_training_but_what_is_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(tmp_path / "captions.txt", "image,caption\n" + "".join(f"{i}.jpg,a dog\n" for i in range(30)))
    for i in range(30):
        write(tmp_path / "Images" / f"{i}.jpg", jpeg(size=(1, 1)))
    write(tmp_path / "Images" / "lonely.jpg", jpeg())
    data = read(f"{tmp_path}:val=7,test=2,seed=1")
    assert [len(names(data, split)) for split in ("train", "val", "test")] == [21, 7, 2]
    assert data.skipped == {"no captions": 1}
    assert data.examples == {"no captions": ("Images/lonely.jpg",)}
    assert "says nothing of splits: all its pictures are for training" in caplog.text
    assert read(f"{tmp_path}:val=7,test=2,seed=1").pictures == data.pictures
    assert len(names(read(f"{tmp_path}:val=0"), "train")) == 30


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters='"'), min_size=1))
def test_any_caption_survives_captions_txt(tmp_path_factory: pytest.TempPathFactory, caption: str) -> None:
    folder = tmp_path_factory.mktemp("set")
    write(folder / "a.jpg", jpeg(size=(1, 1)))
    write(folder / "Flickr_8k.trainImages.txt", "a.jpg")
    write(folder / "captions.txt", f"image,caption\r\na.jpg,{caption}\r\n")
    assert read(folder).pictures[0].captions == (caption,)


@pytest.mark.parametrize(
    ("written", "caption"),
    [
        ('"A dog, running"', "A dog, running"),
        ('"A sign says ""stop"""', 'A sign says "stop"'),
        ('"Stop" says the "sign"', '"Stop" says the "sign"'),
        ('A sign says "stop"', 'A sign says "stop"'),
        ('"Cows in a field .', '"Cows in a field .'),
    ],
)
def test_captions_in_quotes(flickr: Path, written: str, caption: str) -> None:
    write(flickr / "captions.txt", f"\ufeffimage,caption\na.jpg,{written}\n")
    assert read(flickr).pictures[0].captions == (caption,)


def test_several_sets_are_mixed_and_keep_their_names(flickr: Path, tmp_path: Path) -> None:
    write(tmp_path / "other" / "dataset.json", karpathy(*(image(f"{i}.jpg") for i in range(10))))
    write_tar(tmp_path / "other" / "images.tar", {f"Images/{i}.jpg": jpeg() for i in range(10)})
    data = read(flickr, f"{tmp_path / 'other'}:val=3,seed=1", flickr)
    assert [p.source for p in data.split("test")] == ["flickr8k", "flickr8k-2"]
    assert [p.source for p in data.split("val")] == ["flickr8k", *["other"] * 3, "flickr8k-2"]
    assert len(data.split("train")) == 1 + 7 + 1
    assert data.skipped == {"no split": 2}


def test_broken_pictures_are_skipped_and_counted_when_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "good.jpg", jpeg())
    write(tmp_path / "cut.jpg", jpeg(size=(300, 300))[:500])
    write(tmp_path / "text.jpg", b"no picture at all")
    write(tmp_path / "dataset.json", karpathy(*(image(f"{name}.jpg") for name in ("good", "cut", "text"))))
    assert len(read(tmp_path).pictures) == 3
    data = read(tmp_path, check_pictures=True)
    assert names(data, "train") == ["good.jpg"]
    assert data.skipped == {"broken picture": 2}
    assert "the picture cut.jpg cannot be decoded" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"found no captions. Looked for: .*captions\.txt.*There are 1 picture \(a\.jpg\) and 0 other files"),
        ({"captions.txt": "image,caption\na.jpg\n"}, "line 2: expected 'image,caption'"),
        ({"dataset.json": "{"}, r"dataset\.json: not JSON"),
        ({"dataset.json": "[1]"}, "expected an object a record"),
        ({"dataset.json": {"images": [{"file": "a.jpg"}]}}, "neither Karpathy's nor COCO's"),
        ({"captions_train.json": {"images": [], "annotations": [{}]}}, "neither Karpathy's nor COCO's"),
        ({"dataset.json": b"\xff\xfe"}, "not UTF-8"),
        ({"dataset.json": karpathy(image("a.jpg"), image("a.jpg"))}, r"a\.jpg is listed twice"),
        ({"dataset.json": karpathy()}, "none listed"),
        (
            {"dataset.json": karpathy(image("gone.jpg"))},
            r"1 with no picture, such as 'gone\.jpg' \(looked for below .*, where 1 picture lies, such as 'a\.jpg'\)",
        ),
        (
            {"captions.txt": "a.jpg,x", "Flickr_8k.devImages.txt": "a.jpg", "Flickr_8k.testImages.txt": "a.jpg"},
            "already in the split val",
        ),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.jpg", jpeg())
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_a_missing_path_says_how_specs_look(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "nowhere")
    for wrong in ("valid=3", "val=x", "val=3,sed=1", "train=3", "val="):
        with pytest.raises(DataError, match=r"is no option \(a spec is PATH or PATH:val=N,test=N,seed=N,images=DIR\)"):
            read(f"{tmp_path}:{wrong}")
    with pytest.raises(DataError, match="images=nowhere: no such folder"):
        read(f"{tmp_path}:images=nowhere")


def test_the_drawn_set_reads_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    data = read(write_shapes(tmp_path / "shapes", train=20, val=5, test=5), check_pictures=True)
    assert [len(data.split(split)) for split in ("train", "val", "test")] == [20, 5, 5]
    assert not data.skipped
    assert not caplog.text
    words = {word for p in data.pictures for word in p.captions[0].split()}
    assert {"a", "above", "left", "of", "red", "circle"} <= words
    again = read(write_shapes(tmp_path / "again", train=20, val=5, test=5))
    assert [p.captions for p in again.pictures] == [p.captions for p in data.pictures]
    assert [p.read_bytes() for p in again.pictures] == [p.read_bytes() for p in data.pictures]
