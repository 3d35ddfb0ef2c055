"""Users' files: which pictures there are, and how results are written so that nothing of theirs is lost.

No file is changed before it is known to be ours, and what replaces a file is written beside it first.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, Literal, TextIO

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".heic", ".heif", ".hif", ".gif",
            ".bmp", ".dib", ".tif", ".tiff")  # looked for in folders  # fmt: skip
# Cameras' negatives: a text for one is kept beside it.
RAW = (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef",
       ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f")  # fmt: skip
STDIN = "-"
HEADER = ("path", "caption", "confidence", "error")  # of CSV
KEYS = {"path", "caption", "confidence", "captions", "image", "alt", "review", "decorative", "tags",
        "error"}  # of JSON  # fmt: skip
TABLE_KEYS = {"file_name", "text", "confidence", "tags"}  # of ImageFolder's metadata.jsonl
STARTS = {"json": b'{"path": "', "imagefolder": b'{"file_name": "'}
BESIDE = (".txt", ".xmp", ".json", ".jsonl", ".csv", ".parquet")  # what stands beside pictures, and is not missed
FORMULA = "=+-@\t\r\n＝＋－＠"  # what a spreadsheet takes for the start of one
QUOTE = "'"  # before which it takes a cell for text

Kind = Literal["text", "json", "csv", "imagefolder", "parquet"]
Trouble = Callable[[str, str], None]  # is told of a path, and of what is wrong with it


class ForeignFileError(Exception):
    """A file that was not written by us stands where ours should be."""


def find(
    paths: Iterable[str],
    trouble: Trouble = lambda path, why: None,
    no_picture: Callable[[str], None] = lambda path: None,
    suffixes: tuple[str, ...] = SUFFIXES,
) -> Iterator[str]:
    """Every picture that `paths` name: files, `-`, folders (all below them, by suffix) and globs, in order.

    What is hidden in a folder is left out; what cannot be looked into, or matches nothing, is `trouble`, and what else
    is in a folder is `no_picture`.
    """
    for path in paths:
        if path == STDIN or os.path.isfile(path):
            yield path
        elif os.path.isdir(path):
            yield from _below(path, trouble, no_picture, suffixes)
        elif glob.has_magic(path) and not os.path.lexists(path):
            matches = sorted(match for match in glob.iglob(path, recursive=True) if os.path.isfile(match))
            if not matches:
                trouble(path, "no file matches")
            yield from matches
        else:
            yield path  # opening it says what is wrong


def _below(
    folder: str, trouble: Trouble, no_picture: Callable[[str], None], suffixes: tuple[str, ...]
) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        trouble(str(error.filename), error.strerror or str(error))

    for where, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            path = os.path.join(where, name)
            if os.path.islink(path):
                trouble(path, "a link to a folder; name it to take it in")
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(suffixes):
                yield os.path.join(where, name)
            elif not name.lower().endswith(BESIDE):
                no_picture(os.path.join(where, name))


def same_stem(path: Path, suffixes: Iterable[str]) -> list[Path]:
    """Other files of the same name but for the suffix, one of `suffixes`: photo.png beside photo.jpg."""
    others = [path.with_suffix(end) for suffix in suffixes for end in (suffix, suffix.upper())]
    return [other for other in others if other != path and other.exists() and not other.samefile(path)]


def replace(path: Path, data: bytes) -> None:
    """Make `data` the content of `path` in one step, with the old file's owner, permissions and attributes."""
    with written_aside(path) as aside:
        aside.write_bytes(data)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """An empty file beside `path` that takes its place, in one step, when the block ends well; a link stays a link."""
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".caption-")
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        if path.exists():
            shutil.copystat(path, aside)
            with suppress(OSError):  # another's file in a shared folder
                os.chown(aside, path.stat().st_uid, path.stat().st_gid)
            os.utime(aside)
        else:
            mask = os.umask(0)
            os.umask(mask)
            aside.chmod(0o666 & ~mask)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


class Done:
    """What an earlier run wrote to `path`: the pictures that have captions there.

    Raises `ForeignFileError` for a file that no run of this kind wrote, and changes nothing.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path, self.names = path, set[str]()
        self.end = 0  # bytes of whole records; what follows was cut off by an interruption
        self.unended = False  # whether the last of them has no line break, as some editors leave it
        if not path.is_file():
            return
        parse = {"csv": _csv_row, "imagefolder": _table_row}.get(kind, _json_row)
        with path.open("rb") as file:
            for record, whole in _records(file, quotes=kind == "csv"):
                try:
                    if whole:
                        name = parse(record, self.end == 0)
                        self.end += len(record)
                        if name is not None:
                            self.names.add(name)
                    elif (name := _unended(record, kind, self.end == 0)) is not None:
                        self.names.add(name)
                        self.end += len(record)
                        self.unended = True
                    elif not _cut_off(record, kind, self.end == 0):
                        raise ValueError
                except ValueError as error:
                    raise ForeignFileError(
                        f"{path} was not written by caption --{kind}; choose another file, or --force to replace it"
                    ) from error

    def cut(self) -> None:
        """Take the record that was cut off away; a whole one gets its line break."""
        if self.path.is_file() and (self.unended or self.path.stat().st_size > self.end):
            with written_aside(self.path) as aside, self.path.open("rb") as old, aside.open("wb") as new:
                left = self.end
                while left:
                    left -= new.write(old.read(min(left, 2**20)))
                if self.unended:
                    new.write(b"\n")


def _records(file: BinaryIO, quotes: bool) -> Iterator[tuple[bytes, bool]]:
    """Lines, and whether each is whole; of CSV, lines that belong together because a quoted cell holds their break."""
    record = b""
    for line in file:
        record += line
        if line.endswith(b"\n") and not (quotes and record.count(b'"') % 2):
            yield record, True
            record = b""
    if record:
        yield record, False


def _json_row(record: bytes, first: bool) -> str | None:
    try:
        row = json.loads(record.decode(errors="surrogateescape"))
    except RecursionError as error:
        raise ValueError from error
    if not (isinstance(row, dict) and row.keys() <= KEYS and isinstance(row.get("path"), str)):
        raise ValueError
    if "error" in row:
        return None
    if not isinstance(row.get("captions"), list):  # in each of ours, and rarely in another's list of captions
        raise ValueError
    name: str = row["path"]
    return name


def _table_row(record: bytes, first: bool) -> str:
    row = json.loads(record.decode(errors="surrogateescape"))
    # Others' tables have file names and texts; ours say how sure the model was.
    if not (isinstance(row, dict) and TABLE_KEYS - {"tags"} <= row.keys() <= TABLE_KEYS):
        raise ValueError
    name: str = row["file_name"]
    return name


def _csv_row(record: bytes, first: bool) -> str | None:
    try:
        [row] = csv.reader([record.decode(errors="surrogateescape")], strict=True)
    except csv.Error as error:
        raise ValueError from error
    if first:
        if tuple(row) != HEADER:
            raise ValueError
        return None
    path, _, confidence, error_cell = row
    if confidence:
        float(confidence)
    return None if error_cell else from_cell(path)


def _unended(record: bytes, kind: Kind, first: bool) -> str | None:
    """The picture of a record that lacks nothing but its line break."""
    try:
        if kind != "csv":
            return (_table_row if kind == "imagefolder" else _json_row)(record, first)
        [row] = csv.reader([record.decode(errors="surrogateescape")], strict=True)
    except (ValueError, csv.Error):
        return None
    if first or len(row) != len(HEADER) or not (row[1] or row[2]):  # an error may be cut off behind its comma
        return None
    return _csv_row(record, first)


def _cut_off(record: bytes, kind: Kind, first: bool) -> bool:
    """Whether one of our records may begin like this."""
    if kind == "csv":
        return not first or f"{','.join(HEADER)}\n".encode().startswith(record)
    try:
        (_table_row if kind == "imagefolder" else _json_row)(record, first)
    except json.JSONDecodeError:
        return record.startswith(STARTS[kind]) or STARTS[kind].startswith(record)
    return True


def to_cell(text: str) -> str:
    """`text` as a cell of CSV that a spreadsheet takes for text and not for a formula."""
    return QUOTE + text if text.startswith((*FORMULA, QUOTE)) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` made `cell` of."""
    return cell.removeprefix(QUOTE)


@contextmanager
def output(path: Path | None, kind: Kind, standard: TextIO | None, *, go_on: bool, force: bool) -> Iterator[TextIO]:
    """Where results are written: `standard` without a `path`.

    go_on: after what an earlier run wrote there, at once; otherwise in place of it, when the block ends.
    force: also in place of a file that is not ours. Raises `ForeignFileError`.
    """
    if path is None or (path.exists() and not path.is_file()):  # a device or a pipe has nothing to lose
        assert path or standard
        place: AbstractContextManager[TextIO] = _open(path, "w") if path else nullcontext(standard or sys.stdout)
        with place as file:
            yield file
        return
    try:
        done = Done(path, kind)
    except ForeignFileError:
        if not force:
            raise
        go_on = False
    if go_on:
        done.cut()
        with _open(path, "a") as file:
            yield file
        return
    with written_aside(path) as aside, _open(aside, "w") as file:
        yield file


def _open(path: Path, mode: Literal["a", "w"]) -> TextIO:
    return open(path, mode, encoding="utf-8", errors="surrogateescape", newline="")
