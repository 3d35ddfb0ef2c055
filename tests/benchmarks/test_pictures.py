from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.pictures import drawn, hostile, jpeg, many_scans, overlapping_tags, read_pictures, repeat_scan


def test_pictures_are_drawn_the_same_every_time() -> None:
    first, again = (list(drawn(2, 64, 48)) for _ in range(2))
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert {image.size for image in first} == {(64, 48)}
    assert first[0].tobytes() != first[1].tobytes()


def test_pictures_are_read_from_a_folder_or_a_tar_or_drawn(tmp_path: Path) -> None:
    files = [jpeg(image) for image in drawn(3, 32, 24)]
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for number, data in enumerate(files):
            (tmp_path / f"{number}.jpg").write_bytes(data)
            tar.add(tmp_path / f"{number}.jpg", f"{number}.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    assert read_pictures(tmp_path, 2) == files[:2]
    assert read_pictures(tmp_path / "all.tar", 5) == files
    assert Image.open(io.BytesIO(read_pictures(None, 1)[0])).size == (640, 480)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no pictures in"):
        read_pictures(tmp_path / "empty", 1)


def test_a_scan_that_is_repeated_changes_no_pixel() -> None:
    (image,) = drawn(1, 64, 48)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", progressive=True)
    more = repeat_scan(buffer.getvalue(), 3)
    assert more.count(b"\xff\xda") == buffer.getvalue().count(b"\xff\xda") + 3
    assert Image.open(io.BytesIO(more)).size == (64, 48)
    assert many_scans(16, 4).count(b"\xff\xda") == many_scans(16, 0).count(b"\xff\xda") + 4


def test_hostile_files_are_small_pictures_in_large_files() -> None:
    files = hostile(200_000)
    for name, data in files.items():
        if "scans" in name or "tags" in name:
            continue  # small files that are costly in themselves
        assert 150_000 < len(data) < 260_000, name
        if not name.startswith("BMP"):
            assert Image.open(io.BytesIO(data)).size == (64, 64), name
    tags = overlapping_tags(count=5, each=1000)
    assert [len(value) for value in Image.open(io.BytesIO(tags)).getexif().values()] == [1000] * 5
