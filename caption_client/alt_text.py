"""Keeps a caption with its picture: in a text file beside it, or in a JPEG's XMP. The pixels are never touched.

In XMP it is written as `dc:description` and as IPTC's alt text (`Iptc4xmpCore:AltTextAccessibility`), both in the
default language, with `photoshop:CaptionWriter`, which IPTC calls the description's writer, saying that it was us.
ExifTool does it: it knows what cameras and programs make of JPEG and XMP. It is only given links to pictures, in a
folder of our own, and what it made is compared with what there was before it takes the picture's place.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal, Self, get_args

from caption_client import files

Place = Literal["sidecar", "txt", "xmp"]
PLACES: tuple[Place, ...] = get_args(Place)

WRITER = "caption-service"
DESCRIPTION, ALT_TEXT, CAPTION_WRITER = (
    "XMP-dc:Description", "XMP-iptcCore:AltTextAccessibility", "XMP-photoshop:CaptionWriter",
)  # fmt: skip
IPTC_CAPTION = "IPTC:Caption-Abstract"  # the same in the older standard
OURS = (DESCRIPTION, ALT_TEXT, CAPTION_WRITER)
# Which program wrote the packet, and which further segments hold the rest of it.
PACKAGING = ("XMP-x:XMPToolkit", "XMP-xmpNote:HasExtendedXMP")


class AltTextError(Exception):
    """This picture cannot carry a text where it was asked to."""


class AltText:
    """Reads and writes the texts of pictures in one `place`; to be closed, or used as a context manager.

    Raises `AltTextError` where XMP is wanted and there is no ExifTool.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._tool = _ExifTool() if place == "xmp" else None

    def read(self, path: Path) -> str | None:
        """The text kept with the picture at `path`, None without one. Raises `AltTextError`, `OSError`."""
        if self._tool is None:
            beside = sidecar(path, self.place)
            return beside.read_text("utf-8", errors="replace").strip() if beside.is_file() else None
        return _text(self._tags(path))

    def write(self, path: Path, text: str, force: bool = False) -> bool:
        """Keep `text` with the picture at `path`, all or nothing; False if a person's text is there and was kept.

        force: replace that too (in XMP its default language; others stay). Raises as `read`.
        """
        text = " ".join(text.split())
        if self._tool is not None:
            return self._write_xmp(path, text, force)
        beside = sidecar(path, self.place)
        if self.place == "txt":
            _check_shared(path)
        if not force and (old := self.read(path)) is not None and old != text:
            return False  # a text file does not say who wrote it
        files.replace(beside, f"{text}\n".encode())
        return True

    def _write_xmp(self, path: Path, text: str, force: bool) -> bool:
        assert self._tool is not None
        before = self._tags(path)
        if _text(before) is not None and not _is_ours(before) and not force:
            return False
        with files.written_aside(path) as aside:
            made = self._tool.write(path, {f"{DESCRIPTION}-x-default": text, f"{ALT_TEXT}-x-default": text,
                                           CAPTION_WRITER: WRITER})  # fmt: skip
            after = self._tool.read(made)
            changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
            written = [after.get(name) for name in OURS] == [text, text, WRITER]
            if not written or changed - {*OURS, *PACKAGING} or _scan(path) != _scan(made):
                raise AltTextError("the picture's XMP cannot be added to without loss; use --write-alt sidecar")
            shutil.copyfile(made, aside)
        return True

    def _tags(self, path: Path) -> dict[str, Any]:
        assert self._tool is not None
        with path.open("rb") as file:
            if file.read(3) != b"\xff\xd8\xff":
                raise AltTextError("only a JPEG can carry the text in its XMP; use --write-alt sidecar")
        return self._tool.read(path)

    def close(self) -> None:
        """End ExifTool."""
        if self._tool is not None:
            self._tool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sidecar(path: Path, place: Place) -> Path:
    """photo.jpg -> photo.jpg.txt, or for `txt` photo.txt, which training and tagging tools read."""
    return path.with_suffix(".txt") if place == "txt" else path.with_name(f"{path.name}.txt")


def _check_shared(path: Path) -> None:
    for suffix in files.SUFFIXES:
        for other in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
            if other != path and other.exists() and not other.samefile(path):
                raise AltTextError(f"{other.name} would have the same text file; use --write-alt sidecar")


def _text(tags: dict[str, Any]) -> str | None:
    """The default language's text, or else any that a person would miss: other languages', the older standard's."""
    names = [ALT_TEXT, DESCRIPTION, *sorted(name for name in tags if name.startswith((ALT_TEXT, DESCRIPTION)))]
    return next((str(tags[name]) for name in (*names, IPTC_CAPTION) if str(tags.get(name, "")).strip()), None)


def _is_ours(tags: dict[str, Any]) -> bool:
    """Whether we wrote the text; one that a person changed in either place since then is the person's."""
    return tags.get(CAPTION_WRITER) == WRITER and tags.get(DESCRIPTION) == tags.get(ALT_TEXT)


def _scan(path: Path) -> bytes:
    """A JPEG from its first scan on: the pixels and what follows them."""
    data = path.read_bytes()
    at = 2
    while data[at : at + 2] != b"\xff\xda" and data[at : at + 1] == b"\xff":
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return data[at:]


class _ExifTool:
    """One ExifTool for a whole run; it sees only files in a folder of ours, under names of ours."""

    def __init__(self) -> None:
        program = shutil.which("exiftool")
        if program is None:
            raise AltTextError("XMP needs ExifTool (Debian: libimage-exiftool-perl); or use --write-alt sidecar")
        self._folder = tempfile.TemporaryDirectory(prefix="caption-xmp-")
        self._process = subprocess.Popen(
            [program, "-config", "", "-stay_open", "True", "-@", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours to answer, once the picture at hand is whole
        )

    def read(self, path: Path) -> dict[str, Any]:
        """Every XMP property by group and name, and IPTC's caption."""
        name = self._link(path)
        said = self._do("-json", "-G1", "-a", "-q", "-struct", "-XMP:all", f"-{IPTC_CAPTION}", "-Warning", name)
        try:
            [tags] = json.loads(said or "[{}]")
        except ValueError as error:
            raise AltTextError(f"ExifTool cannot read the picture's metadata: {said.strip():.100}") from error
        if re.search("(Empty|Invalid) XMP|XMP format", str(tags.get("ExifTool:Warning", ""))):
            raise AltTextError(f"the picture's XMP is damaged ({tags['ExifTool:Warning']}); use --write-alt sidecar")
        return {name: value for name, value in tags.items() if name not in ("SourceFile", "ExifTool:Warning")}

    def write(self, path: Path, values: dict[str, str]) -> Path:
        """A copy of the picture with these `values`; good until the next call."""
        name = self._link(path)
        made = Path(self._folder.name, "out.jpg")
        made.unlink(missing_ok=True)
        self._do("-q", "-q", *(f"-{name}={value}" for name, value in values.items()), "-o", "out.jpg", name)
        if not made.exists():
            raise AltTextError("ExifTool cannot write this picture's XMP; use --write-alt sidecar")
        return made

    def _link(self, path: Path) -> str:
        """The name under which ExifTool sees the picture: nothing in it can be taken for an option."""
        if path.parent == Path(self._folder.name):
            return path.name
        link = Path(self._folder.name, "in.jpg")
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
        return link.name

    def _do(self, *arguments: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert not any("\n" in argument for argument in arguments)  # each line is an argument
        try:
            self._process.stdin.write("\n".join([*arguments, "-execute1\n"]))
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise AltTextError("ExifTool has ended") from error
        lines: list[str] = []
        for line in self._process.stdout:
            if line.rstrip() == "{ready1}":
                return "".join(lines)
            lines.append(line)
        raise AltTextError("ExifTool has ended")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()
