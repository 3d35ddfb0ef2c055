from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from app import alt_text
from app.alt_text import AltTextError

CAPTION = "A dog & a “ball” <on> the grass."
LIGHTROOM = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="uuid:1" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" xmp:Rating="4" crs:Exposure="+0.35">
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">Old words</rdf:li></rdf:Alt></dc:description>
<dc:subject><rdf:Bag><rdf:li>holiday</rdf:li></rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def jpeg(path: Path, **options: object) -> Path:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "as the camera named it", 6
    Image.radial_gradient("L").save(path, "JPEG", exif=exif, **options)
    return path


@pytest.mark.parametrize("place", ["sidecar", "xmp"])
def test_written_is_read(tmp_path: Path, place: alt_text.Place) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    assert alt_text.read(path, place) is None
    alt_text.write(path, "first", place)
    alt_text.write(path, CAPTION, place)
    assert alt_text.read(path, place) == CAPTION


def test_sidecar_leaves_the_picture_alone(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    before = path.read_bytes()
    alt_text.write(path, CAPTION, "sidecar")
    assert path.read_bytes() == before
    assert (tmp_path / "photo.jpg.txt").read_text() == CAPTION + "\n"
    assert sorted(os.listdir(tmp_path)) == ["photo.jpg", "photo.jpg.txt"]


def test_xmp_changes_no_pixel_and_no_exif(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    path.chmod(0o640)
    before = path.read_bytes()
    alt_text.write(path, CAPTION, "xmp")
    after = path.read_bytes()
    start, end, _ = alt_text._find_xmp(after)
    assert after[:start] + after[end:] == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with Image.open(path) as image:
        assert image.getexif()[0x010E] == "as the camera named it"
        image.load()
    assert os.listdir(tmp_path) == ["photo.jpg"]


def test_other_xmp_stays(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg", xmp=LIGHTROOM)
    assert alt_text.read(path, "xmp") == "Old words"
    alt_text.write(path, CAPTION, "xmp")
    _, _, packet = alt_text._find_xmp(path.read_bytes())
    assert packet is not None
    assert b"Old words" not in packet
    assert b'xmp:Rating="4"' in packet
    assert b'crs:Exposure="+0.35"' in packet
    tree = ElementTree.fromstring(packet)
    assert [item.text for item in tree.iter(alt_text._tag("rdf:li"))].count("holiday") == 1
    assert [item.text for item in tree.iter(alt_text._tag("rdf:li"))].count(CAPTION) == 2  # description and alt text
    with Image.open(path) as image:
        assert image.info["xmp"] == packet  # another reader finds it too


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real = jpeg(tmp_path / "real.jpg")
    link = tmp_path / "link.jpg"
    link.symlink_to(real)
    alt_text.write(link, CAPTION, "xmp")
    assert link.is_symlink()
    assert alt_text.read(real, "xmp") == CAPTION


@pytest.mark.parametrize(
    ("xmp", "why"),
    [
        (b"<x:xmpmeta", "damaged"),
        (b"<other/>", "damaged"),
        (LIGHTROOM.replace(b"holiday", b"holiday" * 9240), "too large"),
    ],
    ids=["cut-off", "no-rdf", "large"],
)
def test_what_cannot_be_kept_safely_is_refused(tmp_path: Path, xmp: bytes, why: str) -> None:
    path = jpeg(tmp_path / "photo.jpg", xmp=xmp)
    before = path.read_bytes()
    with pytest.raises(AltTextError, match=why):
        alt_text.write(path, CAPTION, "xmp")
    assert path.read_bytes() == before


def test_only_jpeg_carries_xmp(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(AltTextError, match="only a JPEG"):
        alt_text.write(path, CAPTION, "xmp")
    assert path.read_bytes() == buffer.getvalue()
