"""What enters the trained part of the encoder, computed once and cached on disk.

With a frozen encoder that is the grid of region features; with its last stages trained it is what
the frozen stages before them give; with every stage trained it is the pixels themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model import preprocess
from model.captioner import Captioner
from training.augment import AugmentConfig, augment
from training.data import DataError, Picture

_CHUNK = 16  # pictures a forward pass: few enough for their activations to stay in a CPU's caches


@dataclass(frozen=True, slots=True)
class Features:
    """Cached inputs of the trained stages, one row a picture that could be read.

    data: (P or more, V, ...) float16 activations, or (P or more, 1, S, S, 3) uint8 pixels. flipped: (P or more, V)
    bool. pictures: the P pictures. broken: those that could not be decoded.
    """

    data: NDArray[Any]
    flipped: NDArray[np.bool_]
    pictures: tuple[Picture, ...]
    broken: tuple[Picture, ...]

    def batch(self, rows: Sequence[int], views: Sequence[int], device: torch.device) -> Tensor:
        """The inputs of some pictures, each in one of its views, (B, ...)."""
        return torch.from_numpy(np.stack([self.data[r, v] for r, v in zip(rows, views, strict=True)])).to(device)


def cached(
    captioner: Captioner,
    frozen_stages: int,
    pictures: Sequence[Picture],
    views: int,
    augmentation: AugmentConfig,
    cache: Path,
    device: torch.device,
    precision: str = "bf16",
) -> Features:
    """`Features` of `pictures` after the encoder's first `frozen_stages` stages, from `cache` where they lie there.

    View 0 is the picture as it is; view v > 0 is augmented, by a generator seeded with the name and v.
    """
    if frozen_stages == 0:
        views = 1  # pixels: augmented anew at every visit instead
    folder = cache / _key(captioner, frozen_stages, pictures, views, augmentation, precision)
    if not (folder / "done.json").is_file():
        _compute(captioner, frozen_stages, pictures, views, augmentation, folder, device, precision)
    places = set(json.loads((folder / "done.json").read_text())["broken"])
    sound = tuple(p for i, p in enumerate(pictures) if i not in places)
    broken = tuple(p for i, p in enumerate(pictures) if i in places)
    return Features(np.load(folder / "data.npy", mmap_mode="r"), np.load(folder / "flipped.npy"), sound, broken)


def _compute(
    captioner: Captioner,
    frozen_stages: int,
    pictures: Sequence[Picture],
    views: int,
    augmentation: AugmentConfig,
    folder: Path,
    device: torch.device,
    precision: str,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stages = captioner.encoder.stages[:frozen_stages].eval()
    config = captioner.config.preprocess

    def load(picture: Picture) -> list[tuple[NDArray[np.uint8], bool]] | None:
        try:
            pixels = preprocess.to_pixels(picture.open(), config)
        except DataError:
            return None
        made: list[tuple[NDArray[np.uint8], bool]] = [(pixels, False)]
        for view in range(1, views):
            digest = hashlib.sha256(f"{picture.name}:{view}".encode()).digest()
            made.append(augment(pixels, np.random.default_rng(list(digest[:8])), augmentation))
        return made

    data: np.memmap[Any, Any] | None = None
    flipped = np.zeros((len(pictures), views), np.bool_)
    broken: list[int] = []  # places in `pictures`: two sets may share names
    row = 0
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        for start in tqdm(range(0, len(pictures), _CHUNK), "features", unit="batch", mininterval=5):
            chunk = pictures[start : start + _CHUNK]
            loaded = list(pool.map(load, chunk))
            broken += [start + i for i, made in enumerate(loaded) if made is None]
            sound = [made for made in loaded if made is not None]
            if not sound:
                continue
            for view in range(views):
                pixels = torch.from_numpy(np.stack([made[view][0] for made in sound]))
                if frozen_stages:
                    x = captioner.normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)
                    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                        values = stages(x).half().cpu().numpy()
                else:
                    values = pixels.numpy()
                if data is None:
                    shape = (len(pictures), views, *values.shape[1:])
                    data = np.lib.format.open_memmap(folder / "data.npy", "w+", values.dtype, shape)
                data[row : row + len(sound), view] = values
                flipped[row : row + len(sound), view] = [made[view][1] for made in sound]
            row += len(sound)
    if data is None:
        raise DataError("not one picture could be decoded")
    data.flush()
    np.save(folder / "flipped.npy", flipped)
    temporary = folder / "done.tmp"
    temporary.write_text(json.dumps({"broken": broken}))
    os.replace(temporary, folder / "done.json")  # last: an interrupted computation starts again


def _key(
    captioner: Captioner,
    frozen_stages: int,
    pictures: Sequence[Picture],
    views: int,
    augmentation: AugmentConfig,
    precision: str,
) -> str:
    """A name for what was computed from what: other weights, pictures or settings get another."""
    digest = hashlib.sha256()
    settings = [frozen_stages, views, asdict(captioner.config.preprocess), captioner.config.encoder.name, precision]
    if views > 1:
        settings.append(asdict(augmentation))
    digest.update(json.dumps(settings).encode())
    for name, value in captioner.encoder.stages[:frozen_stages].state_dict().items():
        digest.update(name.encode())
        digest.update((value.detach().cpu().numpy() + 0).tobytes())  # + 0: no negative zeros, which equal others
    for picture in pictures:
        digest.update(f"{picture.path}:{picture.offset}:{picture.size}\n".encode())
    return digest.hexdigest()[:20]
