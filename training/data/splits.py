"""The words by which sets name their parts, and the lists of Flickr8k that name them for each picture."""

from __future__ import annotations

import re
from pathlib import Path

from training.data.errors import DataError
from training.data.listing import text_of

SPLITS = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's: what everyone trains on besides train
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_of(value: object) -> str | None:
    """The split that a field names in any of the usual words; None of an empty field, "" of any other word."""
    text = "" if value is None else str(value).strip().lower()
    return SPLITS.get(text, "") if text else None


def split_in(name: str) -> str | None:
    """The split that a file's name speaks of in a whole word ("captions_train2014"); None where none or several."""
    found = {SPLITS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def split_of_path(inside: str) -> str | None:
    """The split that the first folder of a path is named after; None where it is not."""
    first, slash, _ = inside.partition("/")
    return SPLITS.get(first.lower()) if slash else None


def listed_beside(folder: Path) -> dict[str, str]:
    """Name -> split from Flickr8k's lists, as `Flickr_8k.trainImages.txt`, in a folder."""
    splits: dict[str, str] = {}
    for split, word in (("train", "train"), ("val", "dev"), ("val", "val"), ("test", "test")):
        for listing in sorted(folder.glob(f"*{word}Images.txt")):
            for name in text_of(listing).split():
                if splits.setdefault(name, split) != split:
                    raise DataError(f"{listing}: {name} is already in the split {splits[name]}")
    return splits
