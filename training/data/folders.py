"""Pictures that have their captions beside them: `a.jpg` and `a.txt`, in folders or in WebDataset's tars."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from training.data.errors import DataError
from training.data.listing import Entry, Place, json_of, text_of
from training.data.places import files_below, is_picture, members
from training.data.splits import split_in, split_of_path
from training.data.tables import CAPTION, texts_in

_BESIDE = (".txt", ".caption")  # a caption a line


def pictures_with_text(root: Path) -> Iterable[Path]:
    """The pictures below `root` that have a file of captions beside them."""
    files = set(files_below(root))
    return (file for file in sorted(files) if is_picture(file.name) and _text_beside(file, files))


def read_folder(root: Path) -> list[Entry]:
    """Every loose picture below `root`, with the lines of the text beside it; folders named train, val and test part
    them."""
    entries = []
    files = set(files_below(root))
    for file in sorted(files):
        if is_picture(file.name):
            inside = file.relative_to(root).as_posix()
            beside = _text_beside(file, files)
            captions = text_of(beside).split("\n") if beside else ()
            place = Place(inside, file, 0, file.stat().st_size)
            entries.append(Entry(inside, captions, split_of_path(inside), place))
    return entries


def holds_captions(tar: Path) -> bool:
    """Whether a tar is one of WebDataset's: a picture and its captions under one key."""
    samples = _samples(tar).values()
    return any(any(map(is_picture, sample)) and any(_is_caption(name) for name in sample) for sample in samples)


def read_tar(tar: Path, root: Path) -> list[Entry]:
    """WebDataset's shard: `key.jpg` with `key.txt` or with a `key.json` that has a caption.

    The split is in the name of the shard or of its folder below `root`; names are unique by that of the shard.
    """
    inside = tar.relative_to(root).as_posix() if tar.is_relative_to(root) else tar.name
    split = split_of_path(inside) or split_in(tar.stem)
    entries = []
    for sample in _samples(tar).values():
        pictures = [place for name, place in sample.items() if is_picture(name)]
        texts = sorted((place for name, place in sample.items() if _is_caption(name)), key=lambda p: _suffix(p.inside))
        captions = next((mine for place in reversed(texts) if (mine := _captions(place))), [])
        entries += [Entry(f"{tar.stem}/{place.inside}", captions, split, place) for place in pictures[:1]]
    return entries


def _text_beside(picture: Path, files: set[Path]) -> Path | None:
    names = (name for suffix in _BESIDE for name in (picture.with_suffix(suffix), Path(f"{picture}{suffix}")))
    return next((path for path in names if path in files), None)


def _samples(tar: Path) -> dict[str, dict[str, Place]]:
    """Key -> name -> place; the key of `a/b.c.jpg` is `a/b`, as WebDataset has it."""
    samples: dict[str, dict[str, Place]] = {}
    for place in members(tar):
        folder, slash, base = place.inside.rpartition("/")
        if not base.startswith("."):
            samples.setdefault(folder + slash + base.partition(".")[0], {})[place.inside] = place
    return samples


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _is_caption(name: str) -> bool:
    return _suffix(name) in (*_BESIDE, ".json")


def _captions(place: Place) -> list[str]:
    where = f"{place.path}: {place.inside}"
    with place.path.open("rb") as file:
        file.seek(place.offset)
        content = file.read(place.size)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text ({error})") from error
    if _suffix(place.inside) != ".json":
        return text.split("\n")
    record = json_of(text, where)
    if not isinstance(record, dict):
        return []
    return next((list(texts_in(record[word])) for word in CAPTION if word in record), [])
