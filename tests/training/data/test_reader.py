from __future__ import annotations

import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.training.data.files import jpeg, names, write, write_tar
from tests.training.shapes import write_shapes
from training.data import DataError, Picture, hold_out, read


def karpathy(*images: dict[str, Any]) -> dict[str, Any]:
    return {"dataset": "some", "images": list(images)}


def image(filename: str, split: str = "train", *captions: str, **more: Any) -> dict[str, Any]:
    return {"filename": filename, "split": split, "sentences": [{"raw": c} for c in captions or ("a dog",)], **more}


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


def test_flickr_with_split_lists(flickr: Path) -> None:
    data = read(flickr)
    assert [names(data, split) for split in ("train", "val", "test")] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]
    assert data.pictures[0].captions == ("A dog , a cat and a ball .", "Two pets")
    assert data.pictures[0].source == "flickr8k"
    assert data.skipped == {"no split": 1}


def test_flickr_with_splits_from_karpathys_json(flickr: Path) -> None:
    for listing in flickr.glob("*Images.txt"):
        listing.unlink()
    images = image("a.jpg", "restval"), image("b.jpg", "test"), image("c.jpg", "val")
    write(flickr / "dataset_flickr8k.json", karpathy(*images))
    data = read(flickr)
    assert [names(data, split) for split in ("train", "val", "test")] == [["a.jpg"], ["c.jpg"], ["b.jpg"]]
    assert data.pictures[0].captions == ("A dog , a cat and a ball .", "Two pets")  # captions.txt has the captions


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


def test_with_no_validation_part_anywhere_a_tenth_of_the_first_set_is_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, count in (("first", 41), ("second", 20)):
        write(tmp_path / name / "dataset.json", karpathy(*(image(f"{i}.jpg") for i in range(count))))
        write_tar(tmp_path / name / "images.tar", {f"{i}.jpg": jpeg() for i in range(count)})
    data = read(tmp_path / "first", tmp_path / "second")
    assert [p.source for p in data.split("val")] == ["first"] * 5
    assert [p.source for p in data.split("train")] == ["first"] * 36 + ["second"] * 20
    assert "5 of the 41 training pictures of first are held out for it" in caplog.text
    assert data.split("val") == read(f"{tmp_path / 'first'}:val=5").split("val")
    only = read(tmp_path / "first", f"{tmp_path / 'second'}:val=2")
    assert [p.source for p in only.split("val")] == ["second"] * 2


@pytest.mark.parametrize("name", ["captions_latest.json", "captions_contest.json", "captions_restraint.json"])
def test_a_split_is_a_whole_word_of_a_file_s_name(tmp_path: Path, name: str) -> None:
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "A dog."}]}
    write(tmp_path / name, content)
    write(tmp_path / "a.jpg", jpeg())
    assert names(read(tmp_path), "train") == ["a.jpg"]


def test_the_same_picture_in_two_parts_is_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    twins = {"a.jpg": "train", "b.jpg": "val", "c.jpg": "test", "d.jpg": "train"}
    pair = {"e.jpg": "train", "f.jpg": "train"}  # twice in one part is no harm
    for name in twins:
        write(tmp_path / "set" / name, jpeg(comment="same"))
    for name in pair:
        write(tmp_path / "set" / name, jpeg(comment="pair"))
    write(tmp_path / "set" / "g.jpg", jpeg(comment="soma"))  # of the same size
    splits = {**twins, **pair, "g.jpg": "val"}
    write(tmp_path / "set" / "dataset.json", karpathy(*(image(name, split) for name, split in splits.items())))
    write(tmp_path / "more" / "dataset.json", karpathy(image("x.jpg"), image("y.jpg")))
    write_tar(tmp_path / "more" / "i.tar", {"x.jpg": jpeg(comment="soma"), "y.jpg": jpeg()})
    data = read(tmp_path / "set", tmp_path / "more")
    assert [names(data, split) for split in ("train", "val", "test")] == [
        ["e.jpg", "f.jpg", "y.jpg"], ["g.jpg"], ["c.jpg"],
    ]  # fmt: skip
    assert data.skipped == {"twin held out": 4}
    assert "the same picture lies in several parts, such as a.jpg (train of set) and c.jpg (test of set)" in caplog.text


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


def test_karpathys_json(tmp_path: Path) -> None:
    content = karpathy(
        image("1.jpg", "train", " A dog\n runs . ", ""),
        image("2.jpg", "restval", filepath="val2014"),
        image("3.jpg", "val"),
        {"filename": "4.jpg", "split": "test", "sentences": [{"tokens": ["a", "cat"]}]},
        image("5.jpg", "train", " "),
        {"filename": "6.jpg", "split": "train"},
        image("7.jpg", "train"),
        image("8.jpg", "train"),
    )
    file = write(tmp_path / "dataset_coco.json", content)
    for name in ("1", "3", "5", "6"):
        write(tmp_path / "deep" / "er" / f"{name}.jpg", jpeg())
    write_tar(tmp_path / "more.tar", {"x/val2014/2.jpg": jpeg("blue"), "4.jpg": jpeg()})
    write(tmp_path / "8.jpg", b"")
    data = read(file)
    assert names(data, "train") == ["1.jpg", "val2014/2.jpg"]
    assert data.pictures[0].captions == ("A dog runs .",)
    assert [p.captions for p in data.split("test")] == [("a cat",)]
    assert data.skipped == {"no captions": 2, "no picture": 1, "broken picture": 1}
    assert data.pictures[0].source == "dataset_coco"
    assert {p.source for p in read(tmp_path).pictures} == {tmp_path.name}


@pytest.mark.parametrize("whole_folder", [True, False])
def test_coco_json(tmp_path: Path, whole_folder: bool) -> None:
    for split, ids in (("train", (1, 2)), ("val", (3,))):
        content = {
            "images": [{"id": i, "file_name": f"COCO_{i}.jpg"} for i in ids],
            "annotations": [{"image_id": ids[0], "caption": c} for c in ("A dog.", "A pet.")],
        }
        write(tmp_path / "annotations" / f"captions_{split}2014.json", content)
        for i in ids:
            write(tmp_path / f"{split}2014" / f"COCO_{i}.jpg", jpeg())
    data = read(tmp_path if whole_folder else tmp_path / "annotations" / "captions_train2014.json")
    assert names(data, "train") == ["COCO_1.jpg"]
    assert names(data, "val") == (["COCO_3.jpg"] if whole_folder else [])
    assert data.pictures[0].captions == ("A dog.", "A pet.")
    assert data.skipped == {"no captions": 1}


def test_several_sets_are_mixed_and_keep_their_names(flickr: Path, tmp_path: Path) -> None:
    write(tmp_path / "other" / "dataset.json", karpathy(*(image(f"{i}.jpg") for i in range(10))))
    write_tar(tmp_path / "other" / "images.tar", {f"Images/{i}.jpg": jpeg() for i in range(10)})
    data = read(flickr, f"{tmp_path / 'other'}:val=3,seed=1", flickr)
    assert [p.source for p in data.split("test")] == ["flickr8k", "flickr8k-2"]
    assert [p.source for p in data.split("val")] == ["flickr8k", *["other"] * 3, "flickr8k-2"]
    assert len(data.split("train")) == 1 + 7 + 1
    assert data.skipped == {"no split": 2}


def test_pictures_in_tars_are_read_in_place(tmp_path: Path) -> None:
    contents = {f"Images/{i}.jpg": jpeg(size=(i + 1, 2)) for i in range(5)}
    write_tar(tmp_path / "images.tar", contents)
    write(tmp_path / "dataset.json", karpathy(*(image(f"{i}.jpg") for i in range(5))))
    data = read(tmp_path, check_pictures=True)
    assert [p.read_bytes() for p in data.pictures] == list(contents.values())
    assert [p.open().size for p in data.pictures] == [(i + 1, 2) for i in range(5)]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


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


def test_pictures_open_upright_and_opaque(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    write(tmp_path / "a.jpg", jpeg(size=(8, 6), exif=exif))
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "b.png")
    write(tmp_path / "dataset.json", karpathy(image("a.jpg"), image("b.png")))
    turned, clear = (picture.open() for picture in read(tmp_path).pictures)
    assert (turned.mode, turned.size) == ("RGB", (6, 8))
    assert (clear.mode, clear.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@given(st.permutations(range(30)), st.integers(0, 30), st.integers(0, 5))
def test_holding_out_depends_on_names_and_seed_alone(order: list[int], count: int, seed: int) -> None:
    pictures = [Picture(f"{i}.jpg", ("a",), "train" if i < 25 else "test", "s", Path(f"{i}")) for i in range(30)]
    if count > 25:
        with pytest.raises(DataError, match="cannot hold out"):
            hold_out(pictures, count, seed)
        return
    held = hold_out(pictures, count, seed)
    again = hold_out([pictures[i] for i in order], count, seed)
    assert [p.name for p in held] == [p.name for p in pictures]
    assert sum(p.split == "val" for p in held) == count
    assert sum(p.split == "test" for p in held) == 5
    assert set(held) == set(again)


def test_another_seed_holds_out_others() -> None:
    pictures = [Picture(f"{i}.jpg", ("a",), "train", "s", Path(f"{i}")) for i in range(100)]
    one, two = ({p.name for p in hold_out(pictures, 30, seed) if p.split == "val"} for seed in (1, 2))
    assert one != two


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
