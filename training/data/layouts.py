"""Which layout a folder or a file of captions has: decided by names, in one order, and said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.coco import read_json
from training.data.errors import DataError
from training.data.flickr import has_results, has_tokens, read_results, read_tokens
from training.data.folders import holds_captions, pictures_with_text, read_folder, read_tar
from training.data.listing import Entry, described
from training.data.parquet import read_parquet
from training.data.places import files_below, is_picture
from training.data.splits import SPLITS, listed_beside, split_in
from training.data.tables import read_table

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listing:
    """A set as its captions describe it."""

    entries: list[Entry]
    root: Path  # the folder to look for pictures in
    whole: bool  # nothing but `root` says which pictures there are: those without a caption count too


@dataclass(frozen=True, slots=True)
class _Layout:
    name: str
    patterns: tuple[str, ...]  # of the files that hold captions; all files of the first one that fits are read
    read: Callable[[Path, Path], list[Entry]]  # the file, and the set's folder
    needs: Callable[[Path], object] = Path.is_file


def _table(file: Path, root: Path) -> list[Entry]:
    """A table of either kind: text files are known by their first line."""
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        line = opened.readline().rstrip("\n")
    return read_tokens(file) if has_tokens(line) else read_results(file) if has_results(line) else read_table(file)


def _metadata(file: Path, root: Path) -> list[Entry]:
    """The metadata of an image folder: names are relative to its own folder, and a folder may be a split."""
    inside = file.parent.relative_to(root).as_posix()
    entries = []
    for entry in _table(file, root):
        name = entry.name if inside == "." else f"{inside}/{entry.name}"
        entries.append(Entry(name, entry.captions, entry.split or _split_of_folders(name)))
    return entries


def _split_of_folders(name: str) -> str | None:
    return next((SPLITS[part] for part in name.lower().split("/")[:-1] if part in SPLITS), None)


LAYOUTS = (
    _Layout("Flickr's captions.txt", ("captions.txt",), _table),
    _Layout("Flickr's tokens", ("*.token.txt", "*.token"), lambda file, _: read_tokens(file)),
    _Layout("Karpathy's JSON", ("dataset*.json",), lambda file, _: read_json(file)),
    _Layout("COCO's JSON", ("captions*.json", "annotations/captions*.json"), lambda file, _: read_json(file)),
    _Layout("an image folder's metadata", ("metadata.csv", "metadata.jsonl", "*/metadata.csv", "*/metadata.jsonl"),
            _metadata),
    _Layout("a table", ("captions.csv", "captions.tsv", "captions.jsonl", "*.csv", "*.tsv", "*.jsonl"), _table),
    _Layout("Parquet", ("*.parquet", "data/*.parquet", "*/*.parquet"), lambda file, _: read_parquet(file)),
    _Layout("WebDataset's tars", ("*.tar", "*/*.tar"), read_tar, holds_captions),
)  # fmt: skip


def listing_of(path: Path) -> Listing:
    """The set in a folder, or that of one file of captions; raises `DataError` with what was looked for."""
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_folder(folder: Path) -> Listing:
    fitting: list[tuple[_Layout, list[Path]]] = []
    for layout in LAYOUTS:
        # Flickr8k's lemma.token file has the captions with their words cut to stems.
        found = (
            [file for file in sorted(folder.glob(pattern)) if layout.needs(file) and "lemma" not in file.name]
            for pattern in layout.patterns
        )
        if files := next(filter(None, found), None):
            fitting.append((layout, files))
    if fitting:
        (layout, files), *others = fitting
        log.info("%s: read as %s, %s", folder, layout.name, _names(files, folder))
        for other, beside in others:
            log.info("%s: %s (%s) is there too, and no captions are taken from it", folder, other.name,
                     _names(beside, folder))  # fmt: skip
        if len(files) > 1 and layout.name == "a table" and not all(split_in(file.stem) for file in files):
            raise DataError(
                f"{folder}: which of the tables {_names(files, folder)} has the captions? Name it in place of the "
                "folder, or call it captions.csv; several are read together where each name says train, val or test"
            )
        return _listing([entry for file in files for entry in layout.read(file, folder)], folder, layout.name)
    if next(iter(pictures_with_text(folder)), None):
        log.info("%s: read as pictures with a .txt beside each", folder)
        return Listing(read_folder(folder), folder, False)
    files = list(files_below(folder))
    pictures = [file for file in files if is_picture(file.name)]
    others_there = [file for file in files if not is_picture(file.name)]
    looked = "; ".join(f"{layout.name} ({', '.join(layout.patterns)})" for layout in LAYOUTS)
    raise DataError(
        f"{folder}: found no captions. Looked for: {looked}; a .txt or .caption beside each picture. There are "
        f"{described(pictures, 'picture')} ({_names(pictures[:1], folder)}) and {described(others_there, 'other file')}"
        f" ({_names(others_there, folder)})"
    )


def _of_file(file: Path) -> Listing:
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    if file.suffix == ".tar":
        if not holds_captions(file):
            raise DataError(f"{file}: holds no pictures with a .txt or .json of captions under the same name")
        return Listing(read_tar(file, root), root, False)
    if file.suffix == ".parquet":
        return Listing(read_parquet(file), root, False)
    if file.suffix == ".json":
        return Listing(read_json(file), root, False)
    entries = _metadata(file, root) if file.stem == "metadata" else _table(file, root)
    return _listing(entries, root, "a table")


def _listing(entries: list[Entry], root: Path, layout: str) -> Listing:
    """Tables know no splits as a rule: Flickr8k's lists beside them do, or Karpathy's JSON."""
    if layout not in (LAYOUTS[0].name, LAYOUTS[1].name, "a table") or any(entry.split for entry in entries):
        return Listing(entries, root, False)
    splits = listed_beside(root)
    if not splits:
        for file in sorted(root.glob("dataset*.json")):
            splits.update((entry.name, entry.split) for entry in read_json(file) if entry.split)
    if not splits:
        return Listing(entries, root, True)
    captions = {entry.name: entry.captions for entry in entries}
    names = dict.fromkeys([*captions, *splits])
    return Listing([Entry(name, captions.get(name, ()), splits.get(name, "")) for name in names], root, False)


def _names(files: Sequence[Path], folder: Path) -> str:
    """The first few files of a folder."""
    first = ", ".join(file.relative_to(folder).as_posix() for file in files[:5])
    return f"{first} and {len(files) - 5} more" if len(files) > 5 else first or "none"
