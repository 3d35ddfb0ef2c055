"""Which pictures are trained on, and which are held out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

from training.data.captions import Picture
from training.data.errors import DataError

log = logging.getLogger(__name__)

VAL_SHARE = 10  # a part in ten of the training pictures validates where no set names or holds out any,
VAL_MOST = 1000  # and no more than these: as many as Flickr8k's own


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


def hold_out_by_default(pictures: Sequence[Picture]) -> list[Picture]:
    """A tenth of the first set's training pictures moved to val, at most `VAL_MOST`: the best epoch needs some."""
    sources = [picture.source for picture in pictures if picture.split == "train"]
    first = [picture for picture in pictures if sources and picture.source == sources[0]]
    train = sources.count(sources[0]) if sources else 0
    count = min(-(-train // VAL_SHARE), VAL_MOST)
    if train < 2:
        return list(pictures)
    log.warning("no set has a validation part: %d of the %d training pictures of %s are held out for it, drawn by "
                "name; PATH:val=N holds out another number", count, train, sources[0])  # fmt: skip
    held = iter(hold_out(first, count))
    return [next(held) if picture.source == sources[0] else picture for picture in pictures]


def apart(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """`pictures` without those whose very bytes are in a part further from training, and what was left out.

    A picture that is in test stays there alone, one that is in val is not trained on. Only pictures of equal
    size, then of equal ends, are read whole.
    """
    groups = [list(pictures)]
    for key in (_size, _tail, _digest):
        groups = [part for group in groups for part in _parted(group, key) if len({p.split for p in part}) > 1]
    left_out: dict[tuple[str, str], Picture] = {}
    for group in groups:
        kept = next(split for split in ("test", "val") if any(picture.split == split for picture in group))
        twin = next(picture for picture in group if picture.split == kept)
        for picture in group:
            if picture.split != kept:
                left_out[picture.source, picture.name] = picture
                log.debug("%s of %s is %s of the %s part of %s", picture.name, picture.source, twin.name, kept,
                          twin.source)  # fmt: skip
        example = next(picture for picture in group if picture.split != kept)
        if group is groups[0]:
            log.warning("the same picture lies in several parts, such as %s (%s of %s) and %s (%s of %s): each is left "
                        "in test, else in val, alone", example.name, example.split, example.source, twin.name, kept,
                        twin.source)  # fmt: skip
    return [p for p in pictures if (p.source, p.name) not in left_out], list(left_out.values())


def _parted(pictures: Iterable[Picture], key: Callable[[Picture], Hashable]) -> list[list[Picture]]:
    parts: dict[Hashable, list[Picture]] = {}
    for picture in pictures:
        parts.setdefault(key(picture), []).append(picture)
    return list(parts.values())


def _size(picture: Picture) -> int:
    return picture.size


def _tail(picture: Picture) -> bytes:
    """The last bytes: headers are often alike, what a picture ends with is not."""
    return picture.read_bytes(4096)


def _digest(picture: Picture) -> bytes:
    return hashlib.blake2b(picture.read_bytes(), digest_size=16).digest()


def _draw(name: str, seed: int) -> int:
    """A uniform 64-bit number from a name and a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8])
