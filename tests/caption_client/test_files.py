from __future__ import annotations

import csv
import io
import json
import os
import stat
from pathlib import Path

import pytest

from caption_client import files
from caption_client.files import Done, ForeignFileError, Kind
from model import images


def test_what_is_not_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "closed", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "open")
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("closed"):  # permissions would not stop root
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    troubles: list[tuple[str, str]] = []
    found = list(files.find([str(tmp_path), f"{tmp_path}/none*.jpg"], lambda *trouble: troubles.append(trouble)))
    assert found == [f"{tmp_path}/open/a.jpg"]
    assert [path for path, _ in troubles] == [f"{tmp_path}/{name}" for name in ("link", "closed", "none*.jpg")]
    assert list(files.find([f"{tmp_path}/link"])) == [f"{tmp_path}/link/a.jpg"]  # named, it is taken in


@pytest.mark.parametrize("name", ["a.JPG", "b.jfif", "c.heic", "d.tiff", "e.mpo", "f.dib", "g.jpe"])
def test_every_suffix_of_a_picture_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert list(files.find([str(tmp_path)])) == [f"{tmp_path}/{name}"]


def test_folders_are_searched_for_what_the_service_reads() -> None:
    """One list would need the client in the service, or the service in the client."""
    assert set(files.SUFFIXES) == set(images.SUFFIXES)
    assert not set(files.SUFFIXES) & set(files.RAW)


def test_what_is_no_picture_by_its_name_is_told(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.jpg.txt", "a.xmp", "b.CR3", "film.mov", ".hidden.mov"):
        (tmp_path / name).touch()
    others: list[str] = []
    assert list(files.find([str(tmp_path)], no_picture=others.append)) == [f"{tmp_path}/a.jpg"]
    assert others == [f"{tmp_path}/b.CR3", f"{tmp_path}/film.mov"]
    assert list(files.find([str(tmp_path)], suffixes=files.RAW)) == [f"{tmp_path}/b.CR3"]


def test_replacing_keeps_links_and_permissions(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    files.replace(link, b"new")
    assert link.is_symlink()
    assert (real.read_text(), stat.S_IMODE(real.stat().st_mode)) == ("new", 0o640)
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_what_goes_wrong_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with files.written_aside(path) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize(
    "content",
    [
        "my notes", "my notes\n", "one\ntwo\nthree, with no end", '{"path": "/usr", "prefix": "/"}', "{\n", "[1]\n",
        '{"path": 3}\n', '{"path": "a.jpg", "caption": "By a person."}\n', "[" * 100_000 + "\n",
        "path,caption\na,b\n", "path,caption,confidence,error\na,b\n", "path,caption,confidence,error\na,b,much,\n",
        "\xff\xd8\xff picture",
    ],
    ids=lambda content: repr(content[:30]),
)  # fmt: skip
def test_a_foreign_file_is_known_and_left_alone(tmp_path: Path, kind: Kind, content: str) -> None:
    path = tmp_path / "notes"
    path.write_text(content, encoding="latin-1")
    for go_on in (True, False):
        with (
            pytest.raises(ForeignFileError, match="was not written by caption"),
            files.output(path, kind, io.StringIO(), go_on=go_on, force=False) as file,
        ):
            file.write("lost")
        assert path.read_text(encoding="latin-1") == content
    with files.output(path, kind, io.StringIO(), go_on=True, force=True) as file:
        assert path.read_text(encoding="latin-1") == content  # until there is something to take its place
        file.write("forced")
    assert path.read_text() == "forced"


def test_every_cut_of_our_own_files_is_known(tmp_path: Path) -> None:
    rows = [("a.jpg", "A dog.", "0.5", ""), ('b\n"c".jpg', "", "", "cut\noff"), ("'=d.jpg", "A cat.", "0.25", "")]
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([files.HEADER, *(map(files.to_cell, row) for row in rows)])
    lines = [{"path": "a.jpg", "captions": []}, {"path": "b.jpg", "error": "x"}, {"path": "c.jpg", "captions": []}]
    path = tmp_path / "out"
    whole: dict[Kind, tuple[bytes, set[str]]] = {
        "csv": (written.getvalue().encode(), {"a.jpg", "'=d.jpg"}),
        "json": ("".join(json.dumps(line) + "\n" for line in lines).encode(), {"a.jpg", "c.jpg"}),
    }
    for kind, (content, names) in whole.items():
        for cut in range(len(content) + 1):
            path.write_bytes(content[:cut])
            done = Done(path, kind)
            assert path.read_bytes() == content[:cut]
            assert done.names <= names
            done.cut()
            assert path.read_bytes() == content[: done.end] + b"\n" * done.unended
            assert path.read_bytes().endswith(b"\n") or not done.end
            assert Done(path, kind).names == done.names
        assert (done.names, done.end) == (names, len(content))


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", "path,caption,confidence,error\na.jpg,my own words,,"),
        ("csv", "path,caption,confidence,error\r\na.jpg,A dog.,0.5,"),
        ("json", '{"path": "a.jpg", "captions": [], "caption": "my own words"}'),
    ],
)
def test_a_last_line_that_an_editor_left_without_its_break_is_kept(tmp_path: Path, kind: Kind, content: str) -> None:
    path = tmp_path / "out"
    path.write_text(content, newline="")
    with files.output(path, kind, None, go_on=True, force=False) as file:
        file.write("more")
    assert path.read_bytes().decode() == content + "\nmore"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\tx", "\rx", "＝1", "'=1", "plain", ""])
def test_no_cell_is_a_formula(text: str) -> None:
    cell = files.to_cell(text)
    assert not cell.startswith(tuple(files.FORMULA))
    assert files.from_cell(cell) == text


def test_a_device_is_written_to_as_it_is() -> None:
    with files.output(Path("/dev/null"), "json", io.StringIO(), go_on=False, force=False) as file:
        file.write("gone")
    assert not Path("/dev/null").is_file()
