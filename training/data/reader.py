"""Reading caption sets: what was asked for, the captions, their pictures, and the parts."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from training.data.captions import CaptionData, Picture
from training.data.errors import DataError
from training.data.holdout import apart, hold_out, hold_out_by_default
from training.data.layouts import Listing, listing_of
from training.data.listing import Place, described
from training.data.places import found_for, places_below

log = logging.getLogger(__name__)

_EXAMPLES = 3  # names kept a reason


@dataclass
class _Skipped:
    """What was left out: reason -> names, and what to say of a reason."""

    names: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.names.setdefault(reason, []).append(name)

    def lines(self) -> list[str]:
        return [
            f"{len(names)} with {reason}, such as {names[0]!r}{self.notes.get(reason, '')}"
            for reason, names in self.names.items()
        ]


@dataclass(frozen=True, slots=True)
class _Options:
    counts: dict[str, int]  # val and test, in the order given
    seed: int = 0
    images: Path | None = None


def read(*specs: Path | str, check_pictures: bool = False) -> CaptionData:
    """Read one or more sets; the layout of each is detected, and said in the log.

    A spec is a folder or an annotation file; layouts: `training.data.layouts`. Pictures may lie in any nesting of
    folders, or in uncompressed tars.
    `"PATH:val=150,seed=1"` moves 150 training pictures into the validation part (`test=N` likewise);
    `"PATH:images=DIR"` says that the pictures lie in another folder.
    A set that names no splits is for training but for these. Where no set has a validation part, and none was asked
    for, a tenth of the first set is held out. A picture whose very bytes are in two parts is not trained on.
    `check_pictures` decodes every picture, to skip and count the broken ones now, not find them later.
    Raises `DataError` where a set is missing, malformed or without a single usable picture.
    """
    pictures: list[Picture] = []
    skipped: Counter[str] = Counter()
    examples: dict[str, tuple[str, ...]] = {}
    sources: set[str] = set()
    asked = False

    def count(left_out: _Skipped) -> None:
        for reason, names in left_out.names.items():
            skipped[reason] += len(names)
            examples[reason] = (*examples.get(reason, ()), *names)[:_EXAMPLES]

    for spec in specs:
        path, options = _parse(str(spec))
        listing = listing_of(path)
        source = _unique(path.stem if path.is_file() else path.resolve().name, sources)
        left_out = _Skipped()
        found = _find_pictures(listing, options.images, source, left_out)
        if check_pictures:
            found = [picture for picture in found if _is_sound(picture, left_out)]
        if not found:
            reasons = "; ".join(left_out.lines())
            raise DataError(f"{path}: no picture with captions is left ({reasons or 'none listed'})")
        for line in left_out.lines():
            log.warning("%s: left out: %s", path, line)
        for split, number in options.counts.items():
            found = hold_out(found, number, options.seed, split)
            asked |= split == "val"
        count(left_out)
        pictures += found
    if not asked and not any(picture.split == "val" for picture in pictures):
        pictures = hold_out_by_default(pictures)
    pictures, twins = apart(pictures)
    count(_Skipped({"twin held out": [picture.name for picture in twins]} if twins else {}))
    return CaptionData(tuple(pictures), dict(skipped), examples)


def _parse(spec: str) -> tuple[Path, _Options]:
    """A spec's path and its options."""
    how = "a spec is PATH or PATH:val=N,test=N,seed=N,images=DIR"
    match = re.fullmatch(r"(.+?):((?:\w+=[^,:=]*)(?:,\w+=[^,=]*)*)", spec)
    if Path(spec).exists() or not match:
        path, pairs = Path(spec), []
    else:
        path, pairs = Path(match[1]), [pair.partition("=")[::2] for pair in match[2].split(",")]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder ({how})")
    counts: dict[str, int] = {}
    seed, images = 0, None
    for key, value in pairs:
        if key == "images":
            images = next((folder for folder in (Path(value), path / value) if value and folder.is_dir()), None)
            if images is None:
                raise DataError(f"{path}: images={value}: no such folder, neither here nor in {path}")
        elif key not in ("val", "test", "seed") or not re.fullmatch(r"\d+", value, re.ASCII):
            raise DataError(f"{path}: {key}={value} is no option ({how})")
        elif key == "seed":
            seed = int(value)
        else:
            counts[key] = int(value)
    return path, _Options(counts, seed, images)


def _find_pictures(listing: Listing, images: Path | None, source: str, left_out: _Skipped) -> list[Picture]:
    """Join captions and pictures; what does not come together is counted."""
    entries, root = listing.entries, images or listing.root
    if len({entry.name for entry in entries}) != len(entries):
        double = next(name for name, count in Counter(entry.name for entry in entries).items() if count > 1)
        raise DataError(f"{listing.root}: the picture {double} is listed twice")
    places = [] if all(entry.place for entry in entries) else places_below(root)
    found = found_for(entries, places, root)
    there = f"{described(places, 'picture')} {'lies' if len(places) == 1 else 'lie'}"
    left_out.notes = {
        "no picture": f" (looked for below {root}, where {there}"
        + (f", such as {places[0].inside!r})" if places else "; PATH:images=DIR names another folder)"),
    }
    splits = any(entry.split is not None for entry in entries)
    pictures: list[Picture] = []
    for entry, place in zip(entries, found, strict=True):
        captions = tuple(text for text in (" ".join(caption.split()) for caption in entry.captions) if text)
        # Where nobody speaks of splits, a picture is there to train on; where others have one, too.
        split = "train" if entry.split is None else entry.split
        if split not in ("train", "val", "test"):
            left_out.add("no split", entry.name)
        elif not captions:
            left_out.add("no captions", entry.name)
        elif place is None:
            left_out.add("no picture", entry.name)
        elif place.size == 0:
            left_out.add("broken picture", entry.name)
        else:
            pictures.append(Picture(entry.name, captions, split, source, place.path, place.offset, place.size))
    if listing.whole and images is None:
        named = {(place.path, place.offset) for place in found if place}
        bases = {entry.name.rpartition("/")[2] for entry in entries}
        for lonely in _first_of_each(places):
            if (lonely.path, lonely.offset) not in named and lonely.inside.rpartition("/")[2] not in bases:
                left_out.add("no captions", lonely.inside)
    if not splits:
        log.info("%s says nothing of splits: all its pictures are for training, but for what val=N and test=N hold out",
                 listing.root)  # fmt: skip
    elif unsaid := [entry.name for entry in entries if entry.split is None]:
        log.warning("%s gives %d of %d pictures no split, such as %s: they are for training", listing.root, len(unsaid),
                    len(entries), unsaid[0])  # fmt: skip
    return pictures


def _first_of_each(places: list[Place]) -> list[Place]:
    """The places without those of a name that came before: a tar beside the folder it was unpacked to."""
    return list({place.inside.rpartition("/")[2]: place for place in reversed(places)}.values())[::-1]


def _is_sound(picture: Picture, left_out: _Skipped) -> bool:
    try:
        picture.open()
    except DataError as error:
        log.warning("%s", error)
        left_out.add("broken picture", picture.name)
        return False
    return True


def _unique(name: str, taken: set[str]) -> str:
    """`name`, or `name-2` and so on where it is taken; the result is taken from then on."""
    made = next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    taken.add(made)
    return made
