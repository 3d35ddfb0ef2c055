from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.data.files import captions, names, write, write_pictures
from training.data import read


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
