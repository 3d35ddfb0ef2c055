"""Readers of caption data sets: Flickr folders, Karpathy's JSON and COCO's JSON, with pictures in folders or tars."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.data.captions import CaptionData, DataError, Picture

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """What an annotation file says about one picture."""

    name: str
    captions: Sequence[str]
    split: str | None  # None: the file does not say


def read(*specs: Path | str, check_pictures: bool = False) -> CaptionData:
    """Read one or more sets; the layout of each is detected.

    A spec is a folder or an annotation file: a folder with Flickr's `captions.txt`, with Karpathy's
    `dataset*.json` or with COCO's `captions_*.json`; or one such JSON file, its pictures beside it.
    Pictures may lie in any nesting of folders, or in uncompressed tars.
    `"PATH:val=150,seed=1"` moves 150 training pictures into the validation part (`test=N` likewise).
    `check_pictures` decodes every picture, to skip and count the broken ones now, not find them later.
    Raises `DataError` where a set is missing, malformed or without a single usable picture.
    """
    pictures: list[Picture] = []
    skipped: Counter[str] = Counter()
    sources: set[str] = set()
    for spec in specs:
        path, options = _parse(str(spec))
        entries, root = _read_entries(path)
        source = _unique(path.stem if path.is_file() else path.resolve().name, sources)
        found, left_out = _find_pictures(entries, root, source)
        if check_pictures:
            sound = [picture for picture in found if _is_sound(picture)]
            left_out["broken picture"] += len(found) - len(sound)
            found = sound
        if not found:
            reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.items() if count)
            raise DataError(f"{path}: no picture with captions is left ({reasons or 'none listed'})")
        seed = options.pop("seed", 0)
        for split, count in options.items():
            found = hold_out(found, count, seed, split)
        pictures += found
        skipped += left_out
    return CaptionData(tuple(pictures), dict(skipped))


def hold_out(pictures: Iterable[Picture], count: int, seed: int = 0, split: str = "val") -> list[Picture]:
    """`pictures` with `count` of the training ones moved to `split`, in the same order.

    The choice depends on the names and the seed alone, so it is the same on every machine and in any order.
    """
    pictures = list(pictures)
    train = [picture for picture in pictures if picture.split == "train"]
    if count > len(train):
        raise DataError(f"cannot hold out {count} pictures: there are {len(train)} to train on")
    chosen = set(sorted(train, key=lambda picture: _draw(picture.name, seed))[:count])
    return [replace(picture, split=split) if picture in chosen else picture for picture in pictures]


def _parse(spec: str) -> tuple[Path, dict[str, int]]:
    """A spec's path and its options."""
    match = re.fullmatch(r"(.+):((?:(?:val|test|seed)=\d+,?)+)", spec)
    path, text = match.groups() if match else (spec, "")
    if not Path(path).exists():
        raise DataError(f"{path}: no such file or folder (a spec is PATH or PATH:val=N,test=N,seed=N)")
    return Path(path), {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}


def _read_entries(path: Path) -> tuple[list[_Entry], Path]:
    """The annotations at `path`, and the folder to look for pictures in."""
    if path.is_dir():
        if (path / "captions.txt").is_file():
            return _read_flickr(path), path
        for pattern in ("dataset*.json", "captions*.json", "annotations/captions*.json"):
            if files := sorted(path.glob(pattern)):
                return [entry for file in files for entry in _read_json(file)], path
        raise DataError(f"{path}: found no captions.txt, dataset*.json or captions_*.json here")
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    if path.name == "captions.txt":
        return _read_flickr(path.parent), path.parent
    return _read_json(path), root


def _read_flickr(folder: Path) -> list[_Entry]:
    """Flickr8k and Flickr30k: `captions.txt` of lines "image,caption"; the splits from the lists or JSON beside it."""
    file = folder / "captions.txt"
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(_text(file).split("\n"), 1):
        name, comma, caption = line.partition(",")
        if not line.strip() or (number == 1 and name.strip().lower() in ("image", "image_name")):
            continue
        if not comma:
            raise DataError(f"{file}, line {number}: expected 'image,caption', not {line[:80]!r}")
        captions.setdefault(name.strip(), []).append(_unquote(caption.strip()))

    splits: dict[str, str] = {}
    for split, word in (("train", "train"), ("val", "dev"), ("val", "val"), ("test", "test")):
        for listing in sorted(folder.glob(f"*{word}Images.txt")):
            for name in _text(listing).split():
                if splits.setdefault(name, split) != split:
                    raise DataError(f"{listing}: {name} is already in the split {splits[name]}")
    if not splits:
        for listing in sorted(folder.glob("dataset*.json")):
            splits.update((entry.name, entry.split) for entry in _read_json(listing) if entry.split)
    if not splits:
        # Nobody says which pictures there are, so those that lie about without a caption count too.
        names = dict.fromkeys([*captions, *_without(captions, folder)])
        return [_Entry(name, captions.get(name, ()), None) for name in names]
    names = dict.fromkeys([*captions, *splits])
    return [_Entry(name, captions.get(name, ()), splits.get(name, "")) for name in names]


def _read_json(file: Path) -> list[_Entry]:
    """Karpathy's layout (`images[].sentences[].raw`) or COCO's (`images` and `annotations`)."""
    try:
        content = json.loads(_text(file))
        if "annotations" in content:
            return _read_coco(file, content)
        return [_read_karpathy(image) for image in content["images"]]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise DataError(f"{file}: neither Karpathy's nor COCO's caption layout ({error!r})") from error


def _read_karpathy(image: Mapping[str, Any]) -> _Entry:
    """One of `images`. Karpathy's restval is what everyone trains on besides train."""
    name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
    captions = [s["raw"] if "raw" in s else " ".join(s["tokens"]) for s in image.get("sentences", ())]
    split = image.get("split")
    return _Entry(name, captions, "train" if split == "restval" else split)


def _read_coco(file: Path, content: Mapping[str, Any]) -> list[_Entry]:
    """COCO's annotations; the split is in the file's name, as in captions_train2014.json."""
    captions: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    found = re.search(r"train|val|test", file.stem)
    return [
        _Entry(image["file_name"], captions.get(image["id"], ()), found[0] if found else None)
        for image in content["images"]
    ]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a picture's bytes are; `inside` is its path in the set's folder or tar."""

    inside: str
    path: Path
    offset: int
    size: int


def _places(root: Path) -> dict[str, list[_Place]]:
    """Every picture below `root` by its base name: loose files first, then members of tars."""
    loose: list[_Place] = []
    packed: list[_Place] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
                loose.append(_Place(path.relative_to(root).as_posix(), path, 0, path.stat().st_size))
            elif path.suffix == ".tar":
                packed += _members(path)
            elif path.name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
                log.warning("%s: a compressed tar cannot be read in place and is left out; unpack it", path)
    places: dict[str, list[_Place]] = {}
    for place in loose + packed:
        places.setdefault(place.inside.rpartition("/")[2], []).append(place)
    return places


def _members(path: Path) -> list[_Place]:
    """The pictures in a tar, by offset: nothing is extracted. A cut-off tar gives what it still holds."""
    found: list[_Place] = []
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and Path(member.name).suffix.lower() in PICTURE_SUFFIXES:
                    found.append(_Place(member.name, path, member.offset_data, member.size))
    except tarfile.TarError as error:
        log.warning("%s: damaged tar (%s); %d pictures could be listed", path, error, len(found))
    return [place for place in found if place.offset + place.size <= end]


def _find_pictures(entries: Sequence[_Entry], root: Path, source: str) -> tuple[list[Picture], Counter[str]]:
    """Join annotations and pictures; what does not come together is counted."""
    places = _places(root)
    wanted = Counter(entry.name.rpartition("/")[2] for entry in entries)
    if len({entry.name for entry in entries}) != len(entries):
        double = next(name for name, count in Counter(entry.name for entry in entries).items() if count > 1)
        raise DataError(f"{root}: the picture {double} is listed twice")
    pictures: list[Picture] = []
    skipped: Counter[str] = Counter()
    guessed = 0
    for entry in entries:
        captions = tuple(text for text in (" ".join(caption.split()) for caption in entry.captions) if text)
        base = entry.name.rpartition("/")[2]
        candidates = places.get(base, [])
        exact = [p for p in candidates if f"/{p.inside}".endswith(f"/{entry.name}")]
        # The folder a name gives is often not there any more; the base name decides unless two share it.
        place = next(iter(exact or (candidates if wanted[base] == 1 else ())), None)
        split = entry.split
        if split is None:
            split, guessed = _random_split(entry.name), guessed + 1
        if split not in ("train", "val", "test"):
            skipped["no split"] += 1
        elif not captions:
            skipped["no captions"] += 1
        elif place is None:
            skipped["no picture"] += 1
        elif place.size == 0:
            skipped["broken picture"] += 1
        else:
            pictures.append(Picture(entry.name, captions, split, source, place.path, place.offset, place.size))
    if guessed:
        log.warning("%s gives no splits: pictures are drawn by name, 80 %% train, 10 %% val, 10 %% test", root)
    return pictures, skipped


def _is_sound(picture: Picture) -> bool:
    try:
        picture.open()
    except DataError as error:
        log.warning("%s", error)
        return False
    return True


def _without(captions: Mapping[str, object], folder: Path) -> list[str]:
    """Paths of the pictures in `folder` that `captions` does not name."""
    named = {name.rpartition("/")[2] for name in captions}
    return [places[0].inside for base, places in _places(folder).items() if base not in named]


def _random_split(name: str) -> str:
    """80 % train, 10 % val, 10 % test, by the name alone."""
    share = _draw(name, 0) / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def _draw(name: str, seed: int) -> int:
    """A uniform 64-bit number from a name and a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8])


def _unique(name: str, taken: set[str]) -> str:
    """`name`, or `name-2` and so on where it is taken; the result is taken from then on."""
    made = next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    taken.add(made)
    return made


def _unquote(caption: str) -> str:
    """A caption written by a CSV library: in quotes, its own quotes doubled. Any other is left as it is."""
    inside = caption[1:-1]
    quoted = len(caption) >= 2 and caption[0] == caption[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if quoted else caption


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error})") from error
