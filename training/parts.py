"""Caption sets in parts that can be carried to a GPU, and weights in pieces that come back (`training.gpu`)."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import shutil
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model import preprocess
from model.captioner import Captioner
from model.checkpoint import CONFIG, METRICS, WEIGHTS, load_captioner, save_captioner, write_json
from model.config import PreprocessConfig, from_dict
from training.config import Recipe
from training.data import DataError, Picture

log = logging.getLogger("training")

PART_BYTES, PIECE_BYTES = 60 * 2**20, 16 * 2**20
QUALITY = 92  # of the JPEGs, which are a sixth larger than the encoder's input: crops lose less
CHECKPOINT, ABOUT = "start", "about.json"


def pack(
    pictures: Sequence[Picture], recipe: Recipe, start: Captioner, folder: Path, part_bytes: int = PART_BYTES
) -> int:
    """Write the parts that are not there yet, and what to begin with; returns how many parts there are in all.

    A part is a tar of JPEGs and a list of their captions. It is written aside and renamed, so one that is there is
    whole. Broken pictures are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = start.config.preprocess.size
    side = round(size * 7 / 6)
    about = {"recipe": asdict(recipe), "size": side, "pictures": len(pictures), "part_bytes": part_bytes}
    known = folder / ABOUT
    if known.is_file() and json.loads(known.read_text())["made_of"] != (made := _made_of(pictures, about)):
        raise DataError(f"{folder} holds parts of other pictures or of another recipe; take another folder ({made})")
    if not known.is_file():
        save_captioner(start, folder / CHECKPOINT, {})
        write_json(known, {**about, "made_of": _made_of(pictures, about)})
    number, first = 0, 0
    while first < len(pictures):
        path = folder / f"part-{number:03d}.tar"
        if path.is_file():
            with tarfile.open(path) as tar:
                first = json.loads(_member(tar, "list.json"))["next"]
        else:
            first = _write_part(path, pictures, first, side, part_bytes)
        number += 1
    return number


def _made_of(pictures: Sequence[Picture], about: dict[str, Any]) -> str:
    content = [[p.source, p.name, p.split, p.captions] for p in pictures], about
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _write_part(path: Path, pictures: Sequence[Picture], first: int, side: int, part_bytes: int) -> int:
    """Pictures from `first` on, as many as fit; returns the first of the next part."""

    def jpeg(picture: Picture) -> bytes | None:
        try:
            image = preprocess.to_pixels(picture.open(), PreprocessConfig(size=side))
        except DataError:
            return None
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        return buffer.getvalue()

    temporary, used, at = path.with_suffix(".tmp"), 2**16, first
    entries: list[dict[str, Any]] = []
    with ThreadPoolExecutor(2) as pool, tarfile.open(temporary, "w") as tar:
        while at < len(pictures) and used < part_bytes:
            for picture, data in zip(pictures[at : at + 64], pool.map(jpeg, pictures[at : at + 64]), strict=True):
                entry = {"source": picture.source, "split": picture.split, "captions": picture.captions}
                cost = len(data or b"") + 2048 + len(json.dumps(entry))
                if entries and used + cost > part_bytes:
                    used = part_bytes
                    break
                used, at = used + cost, at + 1
                if data is not None:
                    _add(tar, f"{len(entries):06d}.jpg", data)
                    entries.append(entry)
        _add(tar, "list.json", json.dumps({"pictures": entries, "next": at}).encode())
    os.replace(temporary, path)
    return at


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


@dataclass(frozen=True, slots=True)
class Packed:
    """What the parts in a folder hold: pixels (P, S, S, 3) uint8 on the device, and whose they are."""

    pixels: Tensor
    pictures: tuple[Picture, ...]
    recipe: Recipe

    def rows(self, split: str) -> list[int]:
        return [i for i, picture in enumerate(self.pictures) if picture.split == split]


def unpack(folder: Path, device: torch.device) -> Packed:
    """Read the parts that are there. Raises `DataError` where there is none."""
    about = json.loads((folder / ABOUT).read_text())
    pictures: list[Picture] = []
    pixels: list[np.ndarray[Any, Any]] = []

    def decoded(data: bytes) -> np.ndarray[Any, Any]:
        return np.asarray(Image.open(io.BytesIO(data)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path in sorted(folder.glob("part-*.tar")):
            with tarfile.open(path) as tar:
                entries = json.loads(_member(tar, "list.json"))["pictures"]
                files = [_member(tar, f"{i:06d}.jpg") for i in range(len(entries))]
            pixels += pool.map(decoded, files)
            pictures += [Picture(str(i), tuple(e["captions"]), e["split"], e["source"], path)
                         for i, e in enumerate(entries, len(pictures))]  # fmt: skip
    if not pictures:
        raise DataError(f"there is no part in {folder}")
    if len(pictures) < about["pictures"]:
        log.warning("%d of %d pictures are in the parts that are here", len(pictures), about["pictures"])
    recipe = from_dict(Recipe, about["recipe"])
    return Packed(torch.from_numpy(np.stack(pixels)).to(device), tuple(pictures), recipe)


def split(folder: Path, piece_bytes: int = PIECE_BYTES) -> int:
    """Cut a checkpoint's weights into pieces; returns how many."""
    data = (folder / WEIGHTS).read_bytes()
    count = math.ceil(len(data) / piece_bytes)
    for i in range(count):
        (folder / f"{WEIGHTS}.{i:02d}").write_bytes(data[i * piece_bytes : (i + 1) * piece_bytes])
    (folder / WEIGHTS).unlink()
    return count


def join(pieces: Path, folder: Path) -> Path:
    """Put the pieces together again, in another folder; raises `CheckpointError` where one is missing or damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / WEIGHTS).open("wb") as whole:
        for piece in sorted(pieces.glob(f"{WEIGHTS}.[0-9][0-9]")):
            whole.write(piece.read_bytes())
    for name in (CONFIG, METRICS):
        shutil.copy(pieces / name, folder / name)
    load_captioner(folder)  # checks the digest
    return folder
