"""Karpathy's JSON and COCO's, and JSON that is a list of records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.data import tables
from training.data.errors import DataError
from training.data.listing import Entry, json_of, text_of
from training.data.splits import split_in, split_of


def read_json(file: Path) -> list[Entry]:
    """Karpathy's layout (`images[].sentences[].raw`), COCO's (`images` and `annotations`), or a list of objects."""
    content = json_of(text_of(file), str(file))
    if isinstance(content, list):
        return tables.entries_of(content, str(file), split_in(file.stem))
    try:
        if "annotations" in content:
            return _read_coco(file, content)
        return [_read_karpathy(image) for image in content["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: neither Karpathy's nor COCO's caption layout ({error!r})") from error


def _read_karpathy(image: Mapping[str, Any]) -> Entry:
    """One of `images`."""
    name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
    captions = [s["raw"] if "raw" in s else " ".join(s["tokens"]) for s in image.get("sentences", ())]
    return Entry(name, captions, split_of(image.get("split")))


def _read_coco(file: Path, content: Mapping[str, Any]) -> list[Entry]:
    """COCO's annotations; the split is in the file's name, as in captions_train2014.json."""
    captions: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    split = split_in(file.stem)
    return [Entry(image["file_name"], captions.get(image["id"], ()), split) for image in content["images"]]
