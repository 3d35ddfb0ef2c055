"""What we write is read back by ExifTool and by Exiv2, two readers that have nothing of ours."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from caption_client import alt_text
from caption_client.alt_text import AltText, AltTextError, Place

CAPTION = "A dog & a “ball” <on> the grass."
START = b"http://ns.adobe.com/xap/1.0/\0"
BEGIN, END = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>', '<?xpacket end="w"?>'
DEFAULT = '<rdf:li xml:lang="x-default">Old words</rdf:li>'
GERMAN = '<rdf:li xml:lang="de">Alte Worte</rdf:li>'


def packet(items: str = "", attributes: str = "") -> str:
    inside = f"<dc:description><rdf:Alt>{items}</rdf:Alt></dc:description>" if items else ""
    return (
        f'{BEGIN}<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="uuid:1" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"'
        f' xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" crs:Exposure2012="+0.35" {attributes}>{inside}'
        f"<dc:subject><rdf:Bag><rdf:li>holiday</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>{END}"
    )


def segment(body: bytes) -> bytes:
    return b"\xff\xe1" + (len(START + body) + 2).to_bytes(2) + START + body


def jpeg(path: Path, xmp: bytes | None = None, behind: bytes = b"\xff\xdb") -> Path:
    """A JPEG with EXIF; its XMP stands before the first segment `behind`, which may be far from the start."""
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "as the camera named it", 6
    buffer = io.BytesIO()
    Image.radial_gradient("L").save(buffer, "JPEG", exif=exif)
    data = buffer.getvalue()
    at = data.index(behind)
    path.write_bytes(data if xmp is None else data[:at] + segment(xmp) + data[at:])
    return path


def exiftool(path: Path, *names: str) -> list[str]:
    """Each of the tags as ExifTool reads it; "" for one that is not there."""
    done = subprocess.run(
        ["exiftool", "-config", "", "-json", "-a", "-G1", *(f"-{name}" for name in names), path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    [tags] = json.loads(done.stdout)
    return [str(tags.get(name, "")) for name in names]


def exiv2(path: Path) -> dict[str, list[str]]:
    """Every XMP property as Exiv2 reads it."""
    done = subprocess.run(["exiv2", "-q", "-PXkt", "print", path], capture_output=True, text=True, check=False)
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value.strip())
    return found


@pytest.fixture(scope="module")
def xmp() -> Iterator[AltText]:
    with AltText("xmp") as place:
        yield place


@pytest.mark.parametrize("place", alt_text.PLACES)
def test_written_is_read(tmp_path: Path, place: Place) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    with AltText(place) as texts:
        assert texts.read(path) is None
        assert texts.write(path, CAPTION)
        assert texts.read(path) == CAPTION
        assert texts.write(path, CAPTION)  # nothing was kept from us


@pytest.mark.parametrize(("place", "name"), [("sidecar", "photo.jpg.txt"), ("txt", "photo.txt")])
def test_a_text_file_leaves_the_picture_alone(tmp_path: Path, place: Place, name: str) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    before = path.read_bytes()
    with AltText(place) as texts:
        assert texts.write(path, CAPTION)
        assert path.read_bytes() == before
        assert (tmp_path / name).read_text() == CAPTION + "\n"
        assert sorted(os.listdir(tmp_path)) == ["photo.jpg", name]
        (tmp_path / name).write_text("by hand\n")
        assert not texts.write(path, CAPTION)
        assert (tmp_path / name).read_text() == "by hand\n"
        assert texts.write(path, CAPTION, force=True)
        assert texts.read(path) == CAPTION


def test_two_pictures_do_not_share_a_text_file(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    (tmp_path / "photo.PNG").touch()
    with pytest.raises(AltTextError, match=r"photo\.PNG would have the same text file"):
        AltText("txt").write(path, CAPTION)
    assert sorted(os.listdir(tmp_path)) == ["photo.PNG", "photo.jpg"]


def test_other_readers_find_it_and_who_wrote_it(tmp_path: Path, xmp: AltText) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    path.chmod(0o640)
    before = path.read_bytes()
    assert xmp.write(path, CAPTION)
    assert exiftool(path, *alt_text.OURS) == [CAPTION, CAPTION, "caption-service"]
    assert exiv2(path) == {
        "Xmp.dc.description": [f'lang="x-default" {CAPTION}'],
        "Xmp.iptc.AltTextAccessibility": [f'lang="x-default" {CAPTION}'],
        "Xmp.photoshop.CaptionWriter": ["caption-service"],
    }
    after = path.read_bytes()
    at = after.index(b"\xff\xe1", after.index(START) - 4)
    assert after[:at] + after[at + 2 + int.from_bytes(after[at + 2 : at + 4]) :] == before  # one segment more
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["photo.jpg"]


PACKETS = {
    "plain": (packet(DEFAULT + GERMAN).encode(), b"\xff\xdb"),
    "behind the first segments": (packet(DEFAULT + GERMAN).encode(), b"\xff\xc0"),
    "just before the scan": (packet(DEFAULT + GERMAN).encode(), b"\xff\xda"),
    "UTF-16, little end first": (packet(DEFAULT + GERMAN).encode("utf-16-le"), b"\xff\xdb"),
    "UTF-16, big end first": (packet(DEFAULT + GERMAN).encode("utf-16-be"), b"\xff\xdb"),
}


@pytest.mark.parametrize("kind", PACKETS)
def test_a_persons_words_are_kept_wherever_they_stand(tmp_path: Path, xmp: AltText, kind: str) -> None:
    path = jpeg(tmp_path / "photo.jpg", *PACKETS[kind])
    before = path.read_bytes()
    assert xmp.read(path) == "Old words"
    assert not xmp.write(path, CAPTION)
    assert path.read_bytes() == before
    assert xmp.write(path, CAPTION, force=True)
    assert path.read_bytes().count(START) == 1  # no second packet
    assert exiv2(path)["Xmp.dc.description"] == [f'lang="x-default" {CAPTION}, lang="de" Alte Worte']
    kept = (
        "XMP-xmp:Rating",
        "XMP-dc:Subject",
        "XMP-crs:Exposure2012",
        "XMP-dc:Description-de",
        "IFD0:ImageDescription",
    )
    assert exiftool(path, *kept) == ["4", "holiday", "+0.35", "Alte Worte", "as the camera named it"]


@pytest.mark.parametrize(
    ("xml", "found"),
    [
        (packet(GERMAN), "Alte Worte"),
        (packet(attributes='dc:description="Attribute words"'), "Attribute words"),
        (packet(attributes='photoshop:CaptionWriter="a person"') , None),
        (packet(), None),
        ('<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>', None),
    ],
    ids=["only another language", "attribute", "writer without a text", "other properties", "no RDF"],
)  # fmt: skip
def test_every_form_of_a_description_is_one(tmp_path: Path, xmp: AltText, xml: str, found: str | None) -> None:
    path = jpeg(tmp_path / "photo.jpg", xml.encode())
    assert xmp.read(path) == found
    assert xmp.write(path, CAPTION) is (found is None)
    assert xmp.write(path, CAPTION, force=True)
    [description] = exiv2(path)["Xmp.dc.description"]
    assert description.startswith(f'lang="x-default" {CAPTION}')
    assert ("Alte Worte" in description) is (found == "Alte Worte")
    assert "Attribute words" not in description  # not doubled
    assert exiv2(path)["Xmp.photoshop.CaptionWriter"] == ["caption-service"]


def test_the_older_standards_caption_is_a_persons_too(tmp_path: Path, xmp: AltText) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-IPTC:Caption-Abstract=Agency words", path], check=True)
    assert xmp.read(path) == "Agency words"
    assert not xmp.write(path, CAPTION)
    assert xmp.write(path, CAPTION, force=True)
    assert exiftool(path, "IPTC:Caption-Abstract") == ["Agency words"]


def test_our_own_text_is_replaced_until_a_person_changes_it(tmp_path: Path, xmp: AltText) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    assert xmp.write(path, "First.")
    assert xmp.write(path, "Second.")
    assert xmp.read(path) == "Second."
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-XMP-dc:Description=Mended.", path], check=True)
    assert not xmp.write(path, "Third.")
    assert exiftool(path, "XMP-dc:Description") == ["Mended."]


@pytest.mark.parametrize(
    "body",
    [b"<x:xmpmeta", b"", b'<?xpacket begin="" id="x"?><other xmlns="urn:x"><keep>me</keep></other><?xpacket end="w"?>'],
    ids=["cut off", "empty", "another program's"],
)
def test_what_cannot_be_kept_safely_is_refused(tmp_path: Path, xmp: AltText, body: bytes) -> None:
    path = jpeg(tmp_path / "photo.jpg", body)
    before = path.read_bytes()
    with pytest.raises(AltTextError, match="use --write-alt sidecar"):
        xmp.write(path, CAPTION)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["photo.jpg"]


def test_names_and_texts_are_no_options(tmp_path: Path, xmp: AltText) -> None:
    path = jpeg(tmp_path / "-o\n-execute\n.jpg")
    assert xmp.write(path, "=x\n-o\nelsewhere.jpg")
    assert xmp.read(path) == "=x -o elsewhere.jpg"
    assert os.listdir(tmp_path) == [path.name]


def test_a_link_stays_a_link(tmp_path: Path, xmp: AltText) -> None:
    real = jpeg(tmp_path / "real.jpg")
    link = tmp_path / "link.jpg"
    link.symlink_to(real)
    assert xmp.write(link, CAPTION)
    assert link.is_symlink()
    assert xmp.read(real) == CAPTION


def test_only_jpeg_carries_xmp(tmp_path: Path, xmp: AltText) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 4)).save(path)
    before = path.read_bytes()
    with pytest.raises(AltTextError, match="only a JPEG"):
        xmp.write(path, CAPTION)
    assert path.read_bytes() == before


def test_without_exiftool_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AltTextError, match="needs ExifTool"):
        AltText("xmp")
    AltText("sidecar").close()
