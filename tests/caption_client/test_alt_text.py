from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from caption_client import alt_text
from caption_client.alt_text import AltText, AltTextError, Place

CAPTION = "A dog & a “ball” <on> the grass."
WHERE: dict[Place, str] = {
    "sidecar": "photo.jpg.txt", "txt": "photo.txt", "xmp": "photo.jpg", "xmp-sidecar": "photo.jpg.xmp",
    "xmp-stem": "photo.xmp",
}  # fmt: skip


def jpeg(path: Path) -> Path:
    Image.radial_gradient("L").save(path)
    return path


@pytest.mark.parametrize("place", alt_text.PLACES)
def test_written_is_read(tmp_path: Path, place: Place) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    with AltText(place) as texts:
        assert texts.read(path) is None
        where, kept, why = texts.write(path, CAPTION)
        assert (where, kept, why) == (tmp_path / WHERE[place], False, "")
        assert texts.read(path) == CAPTION
        before = where.stat().st_mtime_ns
        assert texts.write(path, CAPTION) == (where, kept, why)  # nothing was kept from us
        assert where.stat().st_mtime_ns == before  # and nothing written twice


@pytest.mark.parametrize(("place", "name"), [("sidecar", "photo.jpg.txt"), ("txt", "photo.txt")])
def test_a_text_file_leaves_the_picture_alone(tmp_path: Path, place: Place, name: str) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    before = path.read_bytes()
    with AltText(place) as texts:
        assert texts.write(path, CAPTION).where == tmp_path / name
        assert path.read_bytes() == before
        assert (tmp_path / name).read_text() == CAPTION + "\n"
        assert sorted(os.listdir(tmp_path)) == ["photo.jpg", name]
        (tmp_path / name).write_text("by hand\n")
        assert texts.write(path, CAPTION) == (None, True, "")
        assert (tmp_path / name).read_text() == "by hand\n"
        assert texts.write(path, CAPTION, force=True).where == tmp_path / name
        assert texts.read(path) == CAPTION


def test_two_pictures_do_not_share_a_text_file(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    (tmp_path / "photo.PNG").touch()
    with pytest.raises(AltTextError, match=r"photo\.PNG would have the same text file"):
        AltText("txt").write(path, CAPTION)
    assert sorted(os.listdir(tmp_path)) == ["photo.PNG", "photo.jpg"]


def test_without_exiftool_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AltTextError, match="needs ExifTool"):
        AltText("xmp")
    AltText("sidecar").close()


def test_what_metadata_cannot_keep_says_what_to_do(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    (tmp_path / "photo.CR3").touch()
    with AltText("xmp-stem") as texts, pytest.raises(AltTextError, match=r"photo\.CR3 .* use --write-alt"):
        texts.write(path, CAPTION)


@pytest.mark.parametrize("place", alt_text.PLACES)
def test_a_dry_run_changes_nothing(tmp_path: Path, place: Place) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    before = path.read_bytes(), path.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns
    with AltText(place, dry_run=True) as texts:
        assert texts.write(path, CAPTION).where == tmp_path / WHERE[place]
        assert texts.read(path) is None
    assert (path.read_bytes(), path.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns) == before
