from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.data.files import image, jpeg, karpathy, names, write, write_tar
from training.data import read


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
