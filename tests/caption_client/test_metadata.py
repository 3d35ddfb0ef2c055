"""What is written is read back by ExifTool and by Exiv2, two readers that have nothing of ours."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image, ImageSequence

from caption_client import metadata
from caption_client.exiftool import ExifTool, ExifToolError
from caption_client.metadata import (
    ALT_TEXT,
    CAPTION_WRITER,
    DESCRIPTION,
    EXIF_DESCRIPTION,
    IPTC_CAPTION,
    IPTC_CHARSET,
    IPTC_KEYWORDS,
    SUBJECT,
    Metadata,
    Standard,
)  # fmt: skip

CHANGE = ("exiftool", "-q", "-overwrite_original")
OURS = (DESCRIPTION, ALT_TEXT, CAPTION_WRITER)

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
    """Every property as Exiv2 reads it, of XMP alone where there is no other."""
    done = subprocess.run(["exiv2", "-q", "-PEXIkt", "print", path], capture_output=True, text=True, check=False)
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value.strip())
    return found


@pytest.fixture(scope="module")
def xmp() -> Iterator[Metadata]:
    place = Metadata("xmp")
    yield place
    place.close()


def test_other_readers_find_it_and_who_wrote_it(tmp_path: Path, xmp: Metadata) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    path.chmod(0o640)
    before = path.read_bytes()
    assert xmp.write(path, CAPTION).where == path
    assert exiftool(path, *OURS) == [CAPTION, CAPTION, "caption-service"]
    assert {name: value for name, value in exiv2(path).items() if name.startswith("Xmp")} == {
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
def test_a_persons_words_are_kept_wherever_they_stand(tmp_path: Path, xmp: Metadata, kind: str) -> None:
    path = jpeg(tmp_path / "photo.jpg", *PACKETS[kind])
    before = path.read_bytes()
    assert xmp.read(path) == "Old words"
    assert xmp.write(path, CAPTION).kept
    assert path.read_bytes() == before
    assert xmp.write(path, CAPTION, force=True).where == path
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
def test_every_form_of_a_description_is_one(tmp_path: Path, xmp: Metadata, xml: str, found: str | None) -> None:
    path = jpeg(tmp_path / "photo.jpg", xml.encode())
    assert xmp.read(path) == found
    assert xmp.write(path, CAPTION).kept is (found is not None)
    assert xmp.write(path, CAPTION, force=True).where == path
    [description] = exiv2(path)["Xmp.dc.description"]
    assert description.startswith(f'lang="x-default" {CAPTION}')
    assert ("Alte Worte" in description) is (found == "Alte Worte")
    assert "Attribute words" not in description  # not doubled
    assert exiv2(path)["Xmp.photoshop.CaptionWriter"] == ["caption-service"]


def test_the_older_standards_caption_is_a_persons_too(tmp_path: Path, xmp: Metadata) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    subprocess.run([*CHANGE, "-IPTC:Caption-Abstract=Agency words", path], check=True)
    assert xmp.read(path) == "Agency words"
    assert xmp.write(path, CAPTION).kept
    assert xmp.write(path, CAPTION, force=True).where == path
    assert exiftool(path, "IPTC:Caption-Abstract") == ["Agency words"]


def test_our_own_text_is_replaced_until_a_person_changes_it(tmp_path: Path, xmp: Metadata) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    assert xmp.write(path, "First.").where == path
    assert xmp.write(path, "Second.").where == path
    assert xmp.read(path) == "Second."
    subprocess.run([*CHANGE, "-XMP-dc:Description=Mended.", path], check=True)
    assert xmp.write(path, "Third.").kept
    assert exiftool(path, "XMP-dc:Description") == ["Mended."]


@pytest.mark.parametrize(
    "body",
    [b"<x:xmpmeta", b"", b'<?xpacket begin="" id="x"?><other xmlns="urn:x"><keep>me</keep></other><?xpacket end="w"?>'],
    ids=["cut off", "empty", "another program's"],
)
def test_what_cannot_be_kept_safely_is_left_alone(tmp_path: Path, xmp: Metadata, body: bytes) -> None:
    path = jpeg(tmp_path / "photo.jpg", body)
    before = path.read_bytes()
    where, kept, why = xmp.write(path, CAPTION)
    assert (where, kept) == (tmp_path / "photo.jpg.xmp", False)
    assert re.search("damaged|loss", why)
    assert path.read_bytes() == before
    assert xmp.read(path) == CAPTION
    assert sorted(os.listdir(tmp_path)) == ["photo.jpg", "photo.jpg.xmp"]


def test_names_and_texts_are_no_options(tmp_path: Path, xmp: Metadata) -> None:
    path = jpeg(tmp_path / "-o\n-execute\n.jpg")
    assert xmp.write(path, "=x\n-o\nelsewhere.jpg").where == path
    assert xmp.read(path) == "=x -o elsewhere.jpg"
    assert os.listdir(tmp_path) == [path.name]


def test_a_link_stays_a_link(tmp_path: Path, xmp: Metadata) -> None:
    real = jpeg(tmp_path / "real.jpg")
    link = tmp_path / "link.jpg"
    link.symlink_to(real)
    assert xmp.write(link, CAPTION).where == link
    assert link.is_symlink()
    assert xmp.read(real) == CAPTION


SAVED = ("jpg", "png", "webp", "tif", "heic", "avif", "mpo")


def saved(folder: Path, suffix: str) -> Path:
    """A picture of two colours in the format of this suffix, with EXIF where Pillow writes it there."""
    path = folder / f"photo.{suffix}"
    image = Image.radial_gradient("L").convert("RGB")
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    more: dict[str, object] = (
        {"save_all": True, "append_images": [image.rotate(90)]} if suffix in ("mpo", "tif") else {}
    )
    if suffix == "heic":
        pillow_heif.register_heif_opener()
    image.save(path, exif=exif, **more)
    return path


def pixels(path: Path) -> list[bytes]:
    """Every frame, decoded."""
    with Image.open(path) as image:
        return [frame.copy().tobytes() for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize("suffix", SAVED)
@pytest.mark.parametrize("standards", [("xmp",), metadata.STANDARDS], ids=["xmp", "all"])
def test_every_format_carries_it_and_keeps_its_pixels(
    tmp_path: Path, suffix: str, standards: tuple[Standard, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, suffix)
    before = pixels(path)
    with closing(Metadata("xmp", standards)) as place:
        assert place.write(path, CAPTION, keywords=["dog", "grass"]) == (path, False, "")
        assert place.read(path) == CAPTION
        assert place.write(path, "A cat.", keywords=["cat", "dog"]) == (path, False, "")  # ours, so replaced
    assert pixels(path) == before
    assert len(before) == (2 if suffix in ("mpo", "tif") else 1)
    assert os.listdir(tmp_path) == [path.name]
    names = ("IFD0:Make", DESCRIPTION, ALT_TEXT, CAPTION_WRITER, SUBJECT)
    assert exiftool(path, *names) == ["Maker", "A cat.", "A cat.", "caption-service", "['dog', 'grass', 'cat']"]
    all_three = len(standards) == 3
    assert exiftool(path, EXIF_DESCRIPTION) == ["A cat." if all_three else ""]
    in_iptc = all_three and suffix in ("jpg", "tif", "mpo")
    assert exiftool(path, IPTC_CAPTION, IPTC_CHARSET) == (["A cat.", "UTF8"] if in_iptc else ["", ""])
    if suffix not in ("heic", "avif"):  # this Exiv2 was built without them
        found = exiv2(path)
        assert found["Xmp.dc.description"] == ['lang="x-default" A cat.']
        assert found["Xmp.dc.subject"] == ["dog, grass, cat"]
        if all_three:
            assert found["Exif.Image.ImageDescription"] == ["A cat."]
        if in_iptc:
            assert found["Iptc.Application2.Caption"] == ["A cat."]
            assert found["Iptc.Application2.Keywords"] == ["dog", "grass", "cat"]
            assert found["Iptc.Application2.Writer"] == ["caption-service"]


def test_keywords_of_a_person_stay_and_are_not_doubled(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg", packet(DEFAULT).encode())
    subprocess.run([*CHANGE, "-IPTC:Keywords=Oma", "-IPTC:Keywords=Dog", path], check=True)
    with closing(Metadata("xmp", ("xmp", "iptc"))) as place:
        assert place.write(path, CAPTION, keywords=["Holiday", "dog", "grass"]) == (path, True, "")
        before = path.read_bytes()
        assert place.write(path, CAPTION, keywords=["dog"]) == (None, True, "")
    assert path.read_bytes() == before
    assert exiftool(path, SUBJECT, DESCRIPTION) == ["['holiday', 'dog', 'grass']", "Old words"]
    assert exiftool(path, IPTC_KEYWORDS, IPTC_CAPTION) == ["['Oma', 'Dog', 'Holiday', 'grass']", ""]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_iptc_of_an_older_encoding_is_written_anew_as_utf8(tmp_path: Path, encoding: str) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    charset = "UTF8" if encoding == "utf-8" else "Latin"
    subprocess.run(
        [*CHANGE, "-charset", f"iptc={charset}", "-IPTC:By-line=Jürgen", path],
        check=True,
    )
    assert "Jürgen".encode(encoding) in path.read_bytes()
    with closing(Metadata("xmp", ("xmp", "iptc"))) as place:
        assert place.write(path, CAPTION) == (path, False, "")
    assert exiftool(path, "IPTC:By-line", IPTC_CAPTION, IPTC_CHARSET) == ["Jürgen", CAPTION, "UTF8"]
    assert exiv2(path)["Iptc.Application2.Caption"] == [CAPTION]
    assert exiv2(path)["Iptc.Application2.Byline"] == ["Jürgen"]


def test_exif_is_a_persons_text_where_it_is_to_be_written(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    with closing(Metadata("xmp", metadata.STANDARDS)) as place:
        assert place.read(path) == "as the camera named it"
        assert place.write(path, CAPTION) == (None, True, "")
        assert place.write(path, CAPTION, force=True).where == path
        assert exiftool(path, EXIF_DESCRIPTION, IPTC_CAPTION, DESCRIPTION) == [CAPTION] * 3


def test_what_is_ours_stays_the_same_in_every_standard(tmp_path: Path, xmp: Metadata) -> None:
    path = saved(tmp_path, "jpg")
    with closing(Metadata("xmp", metadata.STANDARDS)) as place:
        assert place.write(path, "First.").where == path
    assert xmp.write(path, "Second.").where == path
    assert exiftool(path, EXIF_DESCRIPTION, IPTC_CAPTION, DESCRIPTION) == ["Second."] * 3


def test_one_standard_alone_and_one_that_the_format_lacks(tmp_path: Path) -> None:
    with closing(Metadata("xmp", ("iptc",))) as place:
        path = saved(tmp_path, "jpg")
        assert place.write(path, CAPTION).where == path
        assert exiftool(path, IPTC_CAPTION, DESCRIPTION, CAPTION_WRITER) == [CAPTION, "", "caption-service"]
        assert place.write(path, "A cat.").where == path
        path = saved(tmp_path, "png")
        assert place.write(path, CAPTION) == (tmp_path / "photo.png.xmp", False, "PNG holds no IPTC")


@pytest.mark.parametrize("name", ["photo.bmp", "photo.CR3", "photo.dng"])
def test_what_carries_no_text_gets_an_xmp_file(tmp_path: Path, xmp: Metadata, name: str) -> None:
    path = tmp_path / name
    Image.new("RGB", (4, 4)).save(path, "TIFF" if name.endswith("dng") else "BMP")
    before = path.read_bytes()
    assert xmp.read(path) is None
    assert xmp.write(path, CAPTION, keywords=["dog"]) == (tmp_path / f"{name}.xmp", False, "its format carries no text")
    assert path.read_bytes() == before
    assert xmp.read(path) == CAPTION
    beside = tmp_path / f"{name}.xmp"
    assert exiftool(beside, DESCRIPTION, ALT_TEXT, CAPTION_WRITER, SUBJECT) == [
        CAPTION,
        CAPTION,
        "caption-service",
        "dog",
    ]
    assert exiv2(beside)["Xmp.dc.description"] == [f'lang="x-default" {CAPTION}']
    other = path.with_suffix(".xmp")
    beside.rename(other)  # as Lightroom names it
    assert xmp.write(path, "A cat.").where == other
    assert exiftool(other, DESCRIPTION) == ["A cat."]
    assert sorted(os.listdir(tmp_path)) == sorted([name, other.name])


@pytest.mark.parametrize(("place", "name"), [("xmp-sidecar", "photo.CR3.xmp"), ("xmp-stem", "photo.xmp")])
def test_an_xmp_file_of_another_program_keeps_what_it_holds(tmp_path: Path, place: metadata.Place, name: str) -> None:
    path, beside = tmp_path / "photo.CR3", tmp_path / name
    path.write_bytes(b"a negative")
    (tmp_path / "photo.JPG").write_bytes(b"its picture, which may have the same name")
    beside.write_text(packet(attributes='xmlns:own="urn:own" own:Edits="crop"'))
    with closing(Metadata(place)) as texts:
        assert texts.write(path, CAPTION, keywords=["dog"]) == (beside, False, "")
        subprocess.run([*CHANGE, "-XMP-dc:Description=Mended.", beside], check=True)
        assert texts.write(path, CAPTION) == (None, True, "")
    assert exiftool(beside, DESCRIPTION) == ["Mended."]
    assert exiftool(beside, "XMP-crs:Exposure2012", "XMP-own:Edits", SUBJECT) == ["+0.35", "crop", "['holiday', 'dog']"]
    assert path.read_bytes() == b"a negative"


def test_pictures_do_not_share_an_xmp_file(tmp_path: Path) -> None:
    path = saved(tmp_path, "jpg")
    (tmp_path / "photo.NEF").touch()
    with closing(Metadata("xmp-stem")) as place, pytest.raises(ExifToolError, match=r"photo\.NEF would have the same"):
        place.write(path, CAPTION)
    (tmp_path / "photo.xmp").write_text(packet(DEFAULT))  # the negative's
    with closing(Metadata("xmp")) as place:
        assert place.read(path) is None
        assert place.write(path, CAPTION).where == path


def test_a_persons_words_beside_the_picture_count_too(tmp_path: Path, xmp: Metadata) -> None:
    path = saved(tmp_path, "jpg")
    (tmp_path / "photo.jpg.xmp").write_text(packet(DEFAULT))
    before = path.read_bytes()
    assert xmp.read(path) == "Old words"
    assert xmp.write(path, CAPTION) == (None, True, "")
    assert path.read_bytes() == before
    (tmp_path / "photo.jpg.xmp").write_text("no XMP")
    assert xmp.read(path) is None


@pytest.mark.parametrize("place", metadata.PLACES)
def test_a_dry_run_changes_nothing(tmp_path: Path, place: metadata.Place) -> None:
    path = saved(tmp_path, "jpg")
    state = [(p, p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in (tmp_path, path)]
    with closing(Metadata(place, dry_run=True)) as texts:
        assert texts.write(path, CAPTION).where == (path if place == "xmp" else texts.sidecar(path))
    assert [(p, p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in (tmp_path, path)] == state


def test_a_copy_that_lost_something_does_not_take_the_files_place(
    tmp_path: Path, xmp: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ExifTool may make of a picture it knows badly."""
    path = saved(tmp_path, "png")
    before = path.read_bytes()
    right = ExifTool.changed

    def spoilt(*arguments: object) -> Path:
        made = right(*arguments)  # type: ignore[arg-type]
        if made.suffix == ".png":
            Image.new("RGB", (256, 256)).save(Path(made.parent, "black.png"))
            damage(made)
        return made

    monkeypatch.setattr(ExifTool, "changed", spoilt)

    def damage(made: Path) -> None:
        subprocess.run([*CHANGE, "-IFD0:Make=", made], check=True)

    assert xmp.write(path, CAPTION).why == "its metadata cannot be added to without loss"

    def damage(made: Path) -> None:  # type: ignore[no-redef]  # noqa: F811
        data = made.read_bytes()
        at = data.index(b"IDAT") + 20
        made.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])

    (tmp_path / "photo.png.xmp").unlink()
    assert xmp.write(path, CAPTION).why == "its pixels would not stay as they are"
    assert path.read_bytes() == before
