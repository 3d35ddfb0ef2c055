"""Where the pictures of a set lie: loose files in any nesting of folders, and members of uncompressed tars."""

from __future__ import annotations

import logging
import os
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from model.images import SUFFIXES
from training.data.listing import Entry, Place

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = frozenset(SUFFIXES)
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


def is_picture(name: str) -> bool:
    """Whether a name ends as pictures' names do."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def files_below(root: Path) -> Iterator[Path]:
    """Every file below `root` in the order of names, hidden folders left out; links are followed, once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            if not name.startswith(".") and (path := Path(folder, name)).is_file():
                yield path


def places_below(root: Path) -> list[Place]:
    """Every picture below `root`: loose files first, then members of tars."""
    loose: list[Place] = []
    packed: list[Place] = []
    for path in files_below(root):
        if is_picture(path.name):
            loose.append(Place(path.relative_to(root).as_posix(), path, 0, path.stat().st_size))
        elif path.suffix == ".tar":
            packed += [place for place in members(path) if is_picture(place.inside)]
        elif path.name.endswith(PACKED_SUFFIXES):
            log.warning("%s: a compressed tar or zip cannot be read in place and is left out; unpack it", path)
    return loose + packed


def members(path: Path) -> list[Place]:
    """The files in a tar, by offset: nothing is extracted. A cut-off tar gives what it still holds."""
    found: list[Place] = []
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg():
                    found.append(Place(member.name, path, member.offset_data, member.size))
    except tarfile.TarError as error:
        log.warning("%s: damaged tar (%s); %d files could be listed", path, error, len(found))
    return [place for place in found if place.offset + place.size <= end]


def found_for(entries: Sequence[Entry], places: Sequence[Place], root: Path) -> list[Place | None]:
    """The place of each entry's picture, None where there is none.

    A name is looked for with the folders it gives, then without them where no two entries share the rest, then
    in another case or other Unicode form, and without a suffix; what only that finds must be the only one, and
    nobody else's. Names that are paths count too where such a file is, relative to `root`.
    """
    by_base: dict[str, list[Place]] = {}
    for place in places:
        by_base.setdefault(_base(place.inside), []).append(place)
    wanted = Counter(_base(entry.name) for entry in entries)

    found: list[Place | None] = []
    for entry in entries:
        name, base = entry.name.replace("\\", "/"), _base(entry.name)
        candidates = by_base.get(base, [])
        exact = [place for place in candidates if f"/{place.inside}".endswith(f"/{name}")]
        direct = _direct(root, name) if "/" in name and not exact else None
        # The folder a name gives is often not there any more; the base name decides unless two share it.
        found.append(entry.place or direct or next(iter(exact or (candidates if wanted[base] == 1 else ())), None))

    taken = {(place.path, place.offset) for place in found if place}
    free: dict[str, list[Place]] = {}
    for place in places:
        if (place.path, place.offset) not in taken:
            base = _loose(_base(place.inside))
            for key in {base, os.path.splitext(base)[0]}:
                free.setdefault(key, []).append(place)
    loosely = Counter(_loose(_base(entry.name)) for entry, place in zip(entries, found, strict=True) if not place)
    matched: list[tuple[str, str]] = []
    for number, entry in enumerate(entries):
        key = _loose(_base(entry.name))
        if found[number] is None and loosely[key] == 1 and len(alike := free.get(key, [])) == 1:
            found[number] = alike[0]
            matched.append((entry.name, alike[0].inside))
    if matched:
        log.warning("%s: %d names are the pictures' but for case, Unicode form or suffix, such as %s, which is taken "
                    "to be %s", root, len(matched), *matched[0])  # fmt: skip
    return found


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _loose(base: str) -> str:
    """A file's name whatever its case and whichever way its accents are coded (a Mac decomposes them)."""
    return unicodedata.normalize("NFC", base.casefold())


def _direct(root: Path, name: str) -> Place | None:
    path = root / name
    return Place(name, path, 0, path.stat().st_size) if path.is_file() else None
