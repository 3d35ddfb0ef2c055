from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_client import exiftool
from caption_client.exiftool import ExifTool, ExifToolError
from tests.pictures import plain


@pytest.fixture(scope="module")
def tool() -> Iterator[ExifTool]:
    with closing(ExifTool()) as tool:
        yield tool


TEXT = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=30)


@settings(deadline=None)
@given(TEXT)
def test_a_sentence_comes_back_as_it_was_written(tool: ExifTool, text: str) -> None:
    text = f"A {text}"
    made = tool.changed(None, ".xmp", [f"-XMP-dc:Description={text}"])
    assert tool.read(made, ["-XMP-dc:Description"]) == {"XMP-dc:Description": text}


def test_neither_the_file_nor_its_neighbours_are_touched(tool: ExifTool, tmp_path: Path) -> None:
    for name in ("-execute.jpg", "@args.jpg", "a b.JPG", "new\nline.jpg"):
        path = tmp_path / name
        path.write_bytes(plain((1, 2, 3), "JPEG"))
        before = path.read_bytes()
        made = tool.changed(path, ".jpg", ["-XMP-dc:Description=Red."])
        assert tool.read(made, ["-XMP-dc:Description"]) == {"XMP-dc:Description": "Red."}
        assert tool.read(path, ["-XMP-dc:Description"]) == {}
        assert (path.read_bytes(), os.listdir(tmp_path)) == (before, [name])
        path.unlink()


def test_what_it_cannot_change_is_an_error(tool: ExifTool, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(ExifToolError, match="cannot write"):
        tool.changed(path, ".jpg", ["-XMP-dc:Description=Red."])


def test_one_that_has_ended_says_so_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exiftool.tempfile, "tempdir", str(tmp_path))
    with closing(ExifTool()) as tool:
        [child] = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()[-1:]
        os.kill(int(child), 9)
        with pytest.raises(ExifToolError, match="has ended"):
            tool.read(Path(__file__))
    assert list(tmp_path.iterdir()) == []


def test_where_it_is_not_installed_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("nothing to start"))
    with pytest.raises(ExifToolError, match="libimage-exiftool-perl"):
        ExifTool()
