from __future__ import annotations

import io
import shutil
import struct
from pathlib import Path

import pytest
from PIL import Image

from caption_client import raw
from caption_client.exiftool import ExifToolError
from tests.pictures import encode, quarters


def negative(path: Path, jpeg: bytes, orientation: int) -> Path:
    """A TIFF of one directory that, as Sony's raw files do, says where a JPEG stands and how it is turned."""
    start = 8 + 2 + 3 * 12 + 4
    entries = [(0x0112, 3, 1, orientation), (0x0201, 4, 1, start), (0x0202, 4, 1, len(jpeg))]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, 3) + directory + bytes(4) + jpeg)
    return path


@pytest.mark.parametrize("name", ["photo.ARW", "-o.arw"])
def test_the_cameras_jpeg_is_turned_as_the_raw_file_says(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jpeg = encode(quarters(), "JPEG")
    negative(tmp_path / name, jpeg, 6)
    with Image.open(io.BytesIO(raw.preview(name))) as image:
        assert image.getexif()[0x0112] == 6
        assert image.tobytes() == Image.open(io.BytesIO(jpeg)).tobytes()


def test_a_preview_that_says_how_it_is_turned_is_left_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    jpeg = encode(quarters(), "JPEG", exif=exif)
    assert raw.preview(str(negative(tmp_path / "a.arw", jpeg, 6))) == jpeg


def test_what_has_no_preview_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.cr3").write_bytes(b"nothing of a camera")
    with pytest.raises(ExifToolError, match=r"without a JPEG|cannot read"):
        raw.preview(str(tmp_path / "a.cr3"))
    with pytest.raises(FileNotFoundError):
        raw.preview(str(tmp_path / "gone.cr3"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ExifToolError, match="needs ExifTool"):
        raw.preview(str(tmp_path / "a.cr3"))
