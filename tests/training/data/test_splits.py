from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.data.files import image, jpeg, karpathy, names, write
from training.data import read


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


@pytest.mark.parametrize("name", ["captions_latest.json", "captions_contest.json", "captions_restraint.json"])
def test_a_split_is_a_whole_word_of_a_file_s_name(tmp_path: Path, name: str) -> None:
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "A dog."}]}
    write(tmp_path / name, content)
    write(tmp_path / "a.jpg", jpeg())
    assert names(read(tmp_path), "train") == ["a.jpg"]
