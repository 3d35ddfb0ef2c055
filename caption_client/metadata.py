"""Captions in pictures' metadata: in the picture's own file, or in an XMP file beside it. No pixel is touched.

In XMP a caption is `dc:description` and IPTC's alt text (`Iptc4xmpCore:AltTextAccessibility`), both in the default
language, with `photoshop:CaptionWriter`, which IPTC calls the description's writer, saying that it was us. If asked,
also the older IPTC-IIM's `Caption-Abstract` and EXIF's `ImageDescription`, and tags as keywords. ExifTool writes; what
it made is compared with what there was before it takes the file's place.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from caption_client import files
from caption_client.exiftool import ExifTool, ExifToolError, Tags
from caption_client.payload import Format, format_of, payload

Place = Literal["xmp", "xmp-sidecar", "xmp-stem"]
PLACES: tuple[Place, ...] = get_args(Place)
Standard = Literal["xmp", "iptc", "exif"]
STANDARDS: tuple[Standard, ...] = get_args(Standard)
DEFAULT: tuple[Standard, ...] = ("xmp",)

WRITER = "caption-service"
DESCRIPTION, ALT_TEXT, CAPTION_WRITER, SUBJECT = (
    "XMP-dc:Description", "XMP-iptcCore:AltTextAccessibility", "XMP-photoshop:CaptionWriter", "XMP-dc:Subject",
)  # fmt: skip
IPTC_CAPTION, IPTC_WRITER, IPTC_KEYWORDS, IPTC_CHARSET = (
    "IPTC:Caption-Abstract", "IPTC:Writer-Editor", "IPTC:Keywords", "IPTC:CodedCharacterSet",
)  # fmt: skip
EXIF_DESCRIPTION = "IFD0:ImageDescription"
TEXTS: dict[Standard, tuple[str, ...]] = {
    "xmp": (ALT_TEXT, DESCRIPTION), "iptc": (IPTC_CAPTION,), "exif": (EXIF_DESCRIPTION,),
}  # fmt: skip
WRITERS: dict[Standard, str] = {"xmp": CAPTION_WRITER, "iptc": IPTC_WRITER}
KEYWORDS: dict[Standard, str] = {"xmp": SUBJECT, "iptc": IPTC_KEYWORDS}
# What says how the file is put together, and so may change with it.
PACKAGING = ("XMP-x:XMPToolkit", "XMP-xmpNote:HasExtendedXMP", "Photoshop:IPTCDigest", "RIFF:WebP_Flags",
             "QuickTime:MediaDataSize")  # fmt: skip
MOVES = re.compile("(Offsets?|Start)$")
SUFFIX: dict[Format, str] = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "TIFF": ".tif", "HEIF": ".heic"}
HOLDS: dict[Format, Collection[Standard]] = {
    "JPEG": STANDARDS, "TIFF": STANDARDS, "PNG": ("xmp", "exif"), "WebP": ("xmp", "exif"), "HEIF": ("xmp", "exif"),
}  # fmt: skip


class Written(NamedTuple):
    """What became of a caption: the file that it is in, and what there is to say of it."""

    where: Path | None  # None where no file was changed for it
    kept: bool = False  # a text of somebody else's was there, and stayed
    why: str = ""  # the caption is beside the picture and not in it


class Metadata:
    """Reads and writes captions in one `place`, in these `standards`; to be closed. Raises `ExifToolError`."""

    def __init__(self, place: Place, standards: Collection[Standard] = DEFAULT, dry_run: bool = False) -> None:
        self.place, self.standards, self.dry_run = place, standards, dry_run
        self._tool = ExifTool()

    def read(self, path: Path) -> str | None:
        """The text kept with the picture at `path`, in it or beside it; None without one."""
        names = [f"-{name}*" if name in TEXTS["xmp"] else f"-{name}" for name in self._names()]  # in every language
        _head(path)  # for the system's own words of what cannot be read
        for file in (path, self.sidecar(path)):
            with suppress(ExifToolError):  # what is wrong with it is said when it is written
                if file.is_file() and (found := self._text(self._tool.read(file, names))) is not None:
                    return found
        return None

    def write(self, path: Path, text: str, force: bool = False, keywords: Sequence[str] = ()) -> Written:
        """Keep `text` with the picture at `path`, all or nothing; a person's text stays unless `force` replaces it.

        `keywords` are added to those that are there. Raises `ExifToolError` and `OSError`.
        """
        text, keywords = " ".join(text.split()), [" ".join(word.split()) for word in keywords]
        kind, beside = format_of(_head(path)), self.sidecar(path)
        if path.suffix.lower() in files.RAW:
            kind = None  # the negative stays as the camera wrote it
        why = "" if kind else "its format carries no text"
        inside: Tags = {}
        try:
            inside = self._tool.read(path)
        except ExifToolError as error:
            kind, why = None, str(error)
        aside = self._tool.read(beside) if beside.is_file() else {}
        kept = not force and any(self._text(tags) is not None and not self._is_ours(tags) for tags in (inside, aside))
        new = None if kept else text
        if self.place == "xmp" and kind is not None:
            try:
                return Written(self._change(path, kind, inside, new, keywords), kept)
            except ExifToolError as error:
                why = str(error)
        made = self._change(beside, None, aside, new, keywords)
        return Written(made, kept, why if made and self.place == "xmp" else "")

    def sidecar(self, path: Path) -> Path:
        """photo.jpg -> photo.jpg.xmp (darktable, digiKam) or photo.xmp (Lightroom, Bridge), as asked or as is there.

        Raises `ExifToolError` where photo.xmp would be another picture's too; a raw file's it is before a JPEG's.
        """
        full, stem = path.with_name(f"{path.name}.xmp"), path.with_suffix(".xmp")
        if self.place == "xmp-sidecar" or (self.place == "xmp" and (full.exists() or not stem.exists())):
            return full
        others = files.same_stem(path, files.RAW if path.suffix.lower() in files.RAW else files.SUFFIXES + files.RAW)
        if others and self.place == "xmp":
            return full
        if others:
            raise ExifToolError(f"{others[0].name} would have the same {stem.name}; use --write-alt xmp-sidecar")
        return stem

    def close(self) -> None:
        self._tool.close()

    def _names(self) -> list[str]:
        """Of all the tags whose text counts: XMP's and IPTC's always, EXIF's, often the camera's, if it is written."""
        return [*TEXTS["xmp"], *TEXTS["iptc"], *(TEXTS["exif"] if "exif" in self.standards else ()), CAPTION_WRITER]

    def _text(self, tags: Tags) -> str | None:
        """The default language's text, or else any that a person would miss."""
        *names, _ = self._names()
        others = sorted(name for name in tags if name.startswith((ALT_TEXT, DESCRIPTION)) and name not in names)
        return next((str(tags[name]) for name in (*names, *others) if str(tags.get(name, "")).strip()), None)

    def _is_ours(self, tags: Tags) -> bool:
        """Whether we wrote the text; one that a person changed in any place since then is the person's."""
        *names, _ = self._names()
        texts = {str(tags[name]) for name in names if str(tags.get(name, "")).strip()}
        return tags.get(CAPTION_WRITER) == WRITER and len(texts) == 1

    def _change(
        self, path: Path, kind: Format | None, before: Tags, text: str | None, keywords: Sequence[str]
    ) -> Path | None:
        """Change the picture, or the XMP file where `kind` is None, or make it; the path, None if all is there."""
        standards = [name for name in (self.standards if kind else DEFAULT) if not kind or name in HOLDS[kind]]
        if not standards:
            raise ExifToolError(f"{kind} holds no {' or '.join(self.standards).upper()}")
        expected: dict[str, str] = {}
        changes: list[str] = []
        if text is not None:
            texts = [name for standard in standards for name in TEXTS[standard]]
            if self._is_ours(before):  # where else we once wrote it, it follows
                texts += [name for names in TEXTS.values() for name in names if before.get(name) == self._text(before)]
            expected |= dict.fromkeys(texts, text)
            expected |= {name: WRITER for standard in (*DEFAULT, *standards) if (name := WRITERS.get(standard))}
            changes += [f"{name}-x-default={value}" if name in TEXTS["xmp"] else f"{name}={value}"
                        for name, value in expected.items()]  # fmt: skip
        lists: dict[str, list[str]] = {}
        for name in (KEYWORDS[standard] for standard in standards if standard in KEYWORDS):
            there = _list(before.get(name))
            known = {word.casefold() for word in there}
            if more := [word for word in keywords if word.casefold() not in known]:
                lists[name] = [*there, *more]
                changes += [f"{name}={word}" for word in lists[name]]
        if not lists and all(str(before.get(name)) == value for name, value in expected.items()):
            return path if text is not None else None
        options = [f"-{change}" for change in changes]
        if any(change.startswith("IPTC:") for change in changes):
            before, options = self._as_utf8(path, before, options)
            expected[IPTC_CHARSET] = "UTF8"
        exists = bool(kind) or path.is_file()
        made = self._tool.changed(path if exists else None, SUFFIX[kind] if kind else ".xmp", options)
        self._compare(before, self._tool.read(made), expected, lists)
        try:
            if kind and payload(path.read_bytes()) != payload(made.read_bytes()):
                raise ExifToolError("its pixels would not stay as they are")
        except (ValueError, LookupError, struct.error) as error:
            raise ExifToolError("it is not as its format says") from error
        if not self.dry_run:
            with files.written_aside(path) as aside:
                shutil.copyfile(made, aside)
        return path

    def _as_utf8(self, path: Path, before: Tags, options: list[str]) -> tuple[Tags, list[str]]:
        """The tags as they are, and options to write IPTC in UTF-8 and say so; what is there is encoded anew."""
        options = [f"-{IPTC_CHARSET}=UTF8", *options]
        there = [item for name, value in before.items() if name.startswith("IPTC:") for item in _list(value)]
        if not there or before.get(IPTC_CHARSET) == "UTF8":
            return before, options
        # Without a mark it is read as Latin 1; some programs write UTF-8 all the same.
        charset = ["-charset", "iptc=UTF8"] if all(map(_hides_utf8, there)) else []
        anew = ["-tagsfromfile", "@", "-IPTC:all", f"--{IPTC_KEYWORDS}"]
        if not any(option.startswith(f"-{IPTC_KEYWORDS}=") for option in options):
            anew.pop()
        return self._tool.read(path, options=charset), [*charset, *anew, *options]

    @staticmethod
    def _compare(before: Tags, after: Tags, expected: dict[str, str], lists: dict[str, list[str]]) -> None:
        """Raises `ExifToolError` unless all is `after` as it was but for what was meant to change."""
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        meant = {*expected, *lists, *PACKAGING}
        lost = [name for name in changed - meant
                if not MOVES.search(name) and (name in before or name.startswith("XMP"))]  # fmt: skip
        written = all(str(after.get(name)) == value for name, value in expected.items())
        if lost or not written or any(_list(after.get(name)) != words for name, words in lists.items()):
            raise ExifToolError("its metadata cannot be added to without loss")


def _list(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [] if value is None else [str(value)]


def _hides_utf8(text: str) -> bool:
    try:
        return bool(text.encode("cp1252").decode("utf-8"))
    except UnicodeError:
        return False


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)
