"""What enters the trained part of the encoder, computed once and cached on disk.

With a frozen encoder that is the grid of region features, or better what enters the 1 x 1 convolution that makes
several times more of it (`before_head`); with its last stages trained it is what the frozen stages before them give;
with every stage trained it is the pixels themselves.

A file holds one view of one picture. It is named by the digest of the picture's bytes, in a folder named by the digest
of all else that it depends on, weights, settings and code. It is written aside and renamed, so what is there is whole,
whoever else computes it at the same time; and a picture more, or another one, is all that is computed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import inspect
import json
import logging
import math
import os
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model import encoder, preprocess
from model.captioner import Captioner
from training import distributed
from training.augment import AugmentConfig, augment
from training.data import DataError, Picture
from training.process import Precision, native

log = logging.getLogger("training")

_CHUNK = 16  # pictures a forward pass: few enough for their activations to stay in a CPU's caches
_BLOCK = 4096  # bytes that a file takes on disk at least, and in multiples of

# What computes a view, of the picture as it is and of an augmented one: with other code or libraries it is another.
_Code = ModuleType | type | Callable[..., Any]
_CODE: tuple[_Code, ...] = (Picture, preprocess, encoder, Captioner.normalise)
_AUGMENT_CODE: tuple[_Code, ...] = (augment,)
_LIBRARIES = ("pillow", "torch", "torchvision")


@dataclass(frozen=True, slots=True)
class Stored:
    """An array (P, V, ...) of which each picture's each view is a file, read when it is asked for."""

    files: tuple[tuple[Path, ...], ...]  # P x V
    row: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.files), len(self.files[0]), *self.row

    def __getitem__(self, place: tuple[int, int]) -> NDArray[Any]:
        picture, view = place
        values: NDArray[Any] = np.fromfile(self.files[picture][view], self.dtype).reshape(self.row)
        return values


@dataclass(frozen=True, slots=True)
class Features:
    """Cached inputs of the encoder's stages from `stages` on, one row a picture that could be read.

    data: (P, V, ...) float16 activations, or (P, 1, S, S, 3) uint8 pixels. flipped: (P, V) bool. pictures: the P
    pictures. broken: those that could not be decoded.
    """

    data: NDArray[Any] | Stored
    flipped: NDArray[np.bool_]
    pictures: tuple[Picture, ...]
    broken: tuple[Picture, ...]
    stages: int

    def batch(self, rows: Sequence[int], views: Sequence[int], device: torch.device) -> Tensor:
        """The inputs of some pictures, each in one of its views, (B, ...)."""
        return torch.from_numpy(np.stack([self.data[r, v] for r, v in zip(rows, views, strict=True)])).to(device)


def cached(
    captioner: Captioner,
    stages: int,
    pictures: Sequence[Picture],
    views: int,
    augmentation: AugmentConfig,
    cache: Path,
    device: torch.device,
    precision: Precision = "auto",
    digests: Sequence[str] | None = None,
) -> Features:
    """`Features` of `pictures` after the encoder's first `stages` stages, from `cache` where they lie there.

    View 0 is the picture as it is; view v > 0 is augmented, by a generator seeded with the picture's bytes and v.
    digests: `contents(pictures)`, where that is known.
    Raises `DataError` where no picture can be decoded, or the disk has too little room.
    """
    precision = native(precision, device)
    digests = contents(pictures) if digests is None else digests
    row, dtype = _row(captioner, stages), np.dtype(np.float16 if stages else np.uint8)
    if stages == 0:
        views = 1  # pixels: augmented anew at every visit instead
    size = math.prod(row) * dtype.itemsize
    plain = cache / _key(captioner, stages, precision, None)
    augmented = cache / _key(captioner, stages, precision, augmentation)
    folders = [plain, *[augmented] * (views - 1)]
    there: dict[tuple[str, int], Path] = {}

    # Dealt out; then what others have computed is found, unless their disk is another, or the picture is broken.
    for shares in (distributed.world_size(), 1) if distributed.world_size() > 1 else (1,):
        for folder in dict.fromkeys(folders):
            there.update(_listed(folder, size))
        distributed.barrier()  # before anyone adds to what is listed
        missing = _missing(digests, pictures, there, views)
        if shares > 1:
            missing = dict(distributed.shard(list(missing.items())))
        if missing:
            count = sum((digest, view) not in there for digest in missing for view in range(views))
            _check_room(cache, count * math.ceil(size / _BLOCK) * _BLOCK, count, views * len(pictures))
            _compute(captioner, stages, missing, augmentation, folders, there, device, precision)
        distributed.barrier()

    sound = [i for i, digest in enumerate(digests) if all((digest, view) in there for view in range(views))]
    if not sound:
        raise DataError("not one picture could be decoded")
    files = tuple(tuple(there[digests[i], view] for view in range(views)) for i in sound)
    flipped = np.array([[_is_mirrored(file) for file in mine] for mine in files])
    broken = sorted(set(range(len(pictures))) - set(sound))
    return Features(
        Stored(files, row, dtype),
        flipped,
        tuple(pictures[i] for i in sound),
        tuple(pictures[i] for i in broken),
        stages,
    )


def _missing(
    digests: Sequence[str], pictures: Sequence[Picture], there: Mapping[tuple[str, int], Path], views: int
) -> dict[str, Picture]:
    """The pictures of which a view is not `there`, by digest: the same picture twice is computed once."""
    found: dict[str, Picture] = {}
    for digest, picture in zip(digests, pictures, strict=True):
        if digest and any((digest, view) not in there for view in range(views)):
            found.setdefault(digest, picture)
    return found


def contents(pictures: Sequence[Picture]) -> list[str]:
    """A digest of each picture's bytes in 32 hexadecimal digits; of one that cannot be read an empty one."""

    def digest(picture: Picture) -> str:
        try:
            return hashlib.blake2b(picture.read_bytes(), digest_size=16).hexdigest()
        except OSError:
            return ""

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(digest, pictures))


def before_head(captioner: Captioner, frozen_stages: int) -> int:
    """After how many of the frozen stages to cache for training: all, or all but a last one that makes more of it.

    That is where the whole encoder is frozen and ends in a 1 x 1 convolution, which is cheap and need not learn.
    """
    if frozen_stages < len(captioner.encoder.stages) or frozen_stages < 2:
        return frozen_stages
    sizes = [math.prod(_row(captioner, stages)) for stages in (frozen_stages - 1, frozen_stages)]
    return frozen_stages - 1 if sizes[0] < sizes[1] else frozen_stages


@torch.inference_mode()
def _row(captioner: Captioner, stages: int) -> tuple[int, ...]:
    """The shape of what a picture is after so many stages."""
    size = captioner.config.preprocess.size
    if stages == 0:
        return size, size, 3
    blank = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=captioner.mean.device)
    return tuple(captioner.encoder.stages[:stages].eval()(captioner.normalise(blank)).shape[1:])


def _compute(
    captioner: Captioner,
    stages: int,
    missing: dict[str, Picture],
    augmentation: AugmentConfig,
    folders: Sequence[Path],
    there: dict[tuple[str, int], Path],
    device: torch.device,
    precision: Precision,
) -> None:
    """Compute and keep all views of the pictures in `missing` that are not `there`, and add them to it."""
    encode = captioner.encoder.stages[:stages].eval()
    config = captioner.config.preprocess

    def load(item: tuple[str, Picture]) -> dict[int, tuple[NDArray[np.uint8], bool]]:
        digest, picture = item
        try:
            pixels = preprocess.to_pixels(picture.open(), config)
        except DataError:
            return {}
        made: dict[int, tuple[NDArray[np.uint8], bool]] = {}
        for view in range(len(folders)):
            if (digest, view) not in there:
                rng = np.random.default_rng([*bytes.fromhex(digest), view])
                made[view] = augment(pixels, rng, augmentation) if view else (pixels, False)
        return made

    items = list(missing.items())
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        for start in tqdm(range(0, len(items), _CHUNK), "features", unit="batch", mininterval=5):
            chunk = items[start : start + _CHUNK]
            loaded = list(pool.map(load, chunk))
            for view, folder in enumerate(folders):
                mine = [(digest, *made[view]) for (digest, _), made in zip(chunk, loaded, strict=True) if view in made]
                if not mine:
                    continue
                pixels = torch.from_numpy(np.stack([of for _, of, _ in mine]))
                if stages:
                    x = captioner.normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)
                    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                        values = encode(x).half().cpu().numpy()
                else:
                    values = pixels.numpy()
                for (digest, _, mirrored), value in zip(mine, values, strict=True):
                    file = folder / digest[:2] / f"{digest}-{view}{'-mirrored' * mirrored}"
                    _write(file, value.tobytes())
                    there[digest, view] = file


def _write(file: Path, content: bytes) -> None:
    """Write a file so that under its name there is all of it or nothing."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"features cannot be kept in {file.parent}: {error.strerror}; --cache names another folder"
        ) from error


def _listed(folder: Path, size: int) -> dict[tuple[str, int], Path]:
    """The views that lie in a folder: (digest, view) -> file. One of another size was cut off, and does not count."""
    found: dict[tuple[str, int], Path] = {}
    for part in os.scandir(folder) if folder.is_dir() else ():
        for entry in os.scandir(part.path):
            if not entry.name.startswith(".") and entry.stat().st_size == size:
                digest, view, *_ = entry.name.split("-")
                found[digest, int(view)] = Path(entry.path)
    return found


def _is_mirrored(file: Path) -> bool:
    return file.name.endswith("-mirrored")


def _check_room(cache: Path, needed: int, count: int, views: int) -> None:
    """Say how much the cache will grow; raises `DataError` where the disk has no room for it."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"no folder can be made at {cache}: {error.strerror}; --cache names another") from error
    free = shutil.disk_usage(cache).free
    log.info("features: %d of %d views to compute, which take %.2f GB in %s", count, views, needed / 1e9, cache)
    if needed > free:
        raise DataError(
            f"the features need {needed / 1e9:.2f} GB in {cache}, where {free / 1e9:.2f} GB are free; "
            "remove what older recipes left there, take fewer views, or name another folder with --cache"
        )


def _key(captioner: Captioner, stages: int, precision: Precision, augmentation: AugmentConfig | None) -> str:
    """A name for what is computed: with other weights, settings or code it is another."""
    digest = hashlib.sha256()
    settings: list[Any] = [stages, asdict(captioner.config.preprocess), captioner.config.encoder.name, precision]
    settings += [importlib.metadata.version(name) for name in _LIBRARIES]
    if augmentation is not None:
        settings.append(asdict(augmentation))
    digest.update(json.dumps(settings).encode())
    for code in (*_CODE, *(_AUGMENT_CODE if augmentation is not None else ())):
        digest.update(_meaning(code).encode())
    for name, value in captioner.encoder.stages[:stages].state_dict().items():
        digest.update(name.encode())
        digest.update((value.detach().cpu().numpy() + 0).tobytes())  # + 0: no negative zeros, which equal others
    return digest.hexdigest()[:20]


@cache
def _meaning(code: _Code) -> str:
    """Source code without comments and layout."""
    return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(code))))
