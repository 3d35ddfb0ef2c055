"""Features with their captions, cut into shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.captioner import Captioner
from model.vocabulary import END, PAD, START
from training import distributed
from training.augment import AugmentConfig, augment
from training.config import TrainConfig
from training.data import Picture
from training.features import Features
from training.language import sides


@dataclass(frozen=True, slots=True)
class Batch:
    """B pictures with N captions each.

    inputs: what enters the trained encoder stages, (B, ...). words: (B, N, T + 1), start to end, padded.
    rows: (B,), the pictures' rows in their `Features`. flipped: (B,), which of them are mirrored.
    """

    inputs: Tensor
    words: Tensor
    rows: list[int]
    flipped: list[bool]


class CaptionSource:
    """Features with their captions as word ids, cut into shuffled batches that depend on seed and epoch alone.

    visits: set -> how often an epoch visits each of its pictures, 1 where not named; of 1.5 a random half twice.
    """

    def __init__(
        self,
        features: Features,
        captioner: Captioner,
        config: TrainConfig,
        augmentation: AugmentConfig,
        visits: Mapping[str, float] | None = None,
    ):
        self.features, self.config, self.augmentation = features, config, augmentation
        sources = np.array([picture.source for picture in features.pictures])
        self.sets = [
            (np.flatnonzero(sources == source), (visits or {}).get(source, 1.0)) for source in dict.fromkeys(sources)
        ]
        encode = captioner.vocabulary.encode
        self.ids = [[encode(c) for c in picture.captions] for picture in features.pictures]
        # Of the captions those whose mirrored form is surely true; a picture without any is not mirrored.
        self.mirrored_ids = [[encode(c) for c in mine] for mine in mirrored_captions(features.pictures, augmentation)]
        self.longest = np.array([min(max(map(len, ids)), config.max_words) for ids in self.ids])

    def __len__(self) -> int:
        """Batches an epoch, of `config.batch_size` pictures a process; a last one too small to share joins another."""
        return batches_of(sum(round(len(rows) * visits) for rows, visits in self.sets), self._size)

    @property
    def _size(self) -> int:
        return self.config.batch_size * distributed.world_size()

    def batches(self, epoch: int, device: torch.device, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, without the first `skip`."""
        rng = np.random.default_rng([self.config.seed, epoch])
        for number, rows in enumerate(self._shuffled(rng)):
            views = rng.integers(self.features.data.shape[1], size=len(rows))
            if number >= skip:
                yield self._batch(rows.tolist(), views.tolist(), epoch, number, device)

    def _shuffled(self, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        order = rng.permutation(np.concatenate([_visited(rows, visits, rng) for rows, visits in self.sets]))
        return shuffled(order, self.longest, self._size, rng)

    def _batch(self, rows: list[int], views: list[int], epoch: int, number: int, device: torch.device) -> Batch:
        """This process's share of a batch, and what would be in it, whoever had it."""
        places = distributed.shard(range(len(rows)))
        rows, views = [rows[i] for i in places], [views[i] for i in places]
        if self.features.data.dtype == np.uint8:  # pixels: augment now
            seeds = [np.random.default_rng([self.config.seed, epoch, number, r]) for r in rows]
            made = [augment(self.features.data[r, 0], s, self.augmentation) for r, s in zip(rows, seeds, strict=True)]
            flipped = [flip and bool(self.mirrored_ids[r]) for r, (_, flip) in zip(rows, made, strict=True)]
            turned = [p[:, ::-1] if was and not flip else p for (p, was), flip in zip(made, flipped, strict=True)]
            inputs = torch.from_numpy(np.stack(turned)).to(device)
        else:
            untrue = [
                self.features.flipped[r, v] and not self.mirrored_ids[r] for r, v in zip(rows, views, strict=True)
            ]
            chosen = [0 if bad else v for v, bad in zip(views, untrue, strict=True)]  # 0: as it is
            inputs = self.features.batch(rows, chosen, device)
            flipped = [bool(self.features.flipped[r, v]) for r, v in zip(rows, chosen, strict=True)]
        captions = []
        for place, row, flip in zip(places, rows, flipped, strict=True):
            mine = (self.mirrored_ids if flip else self.ids)[row]
            rng = np.random.default_rng([self.config.seed, epoch, number, place])
            # As many captions as asked for: all when they are so many, some again when they are fewer.
            order = rng.permutation(len(mine))
            captions.append([mine[order[i % len(mine)]] for i in range(self.config.captions_per_picture)])
        return Batch(inputs, padded(captions, self.config.max_words).to(device), rows, flipped)


def batches_of(count: int, size: int) -> int:
    """How many batches of `size` so many rows make; a last one too small to share joins another."""
    full, rest = divmod(count, size)
    return full + (rest >= distributed.world_size())


def shuffled(
    order: NDArray[np.int64], lengths: NDArray[np.int64], size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """The rows of a shuffle in batches in which captions of like length stand together: less padding."""
    pools = [order[i : i + 32 * size] for i in range(0, len(order), 32 * size)]
    order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    if len(batches[-1]) < distributed.world_size():
        *batches, before, last = batches
        batches.append(np.concatenate([before, last]))
    return [batches[i] for i in rng.permutation(len(batches))]


def _visited(rows: NDArray[np.int64], visits: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """`rows`, each `visits` times; of a fraction as many random ones once more."""
    whole, more = divmod(round(len(rows) * visits), len(rows))
    return np.concatenate([np.tile(rows, whole), rng.permutation(rows)[:more]])


def mirrored_captions(pictures: Sequence[Picture], augmentation: AugmentConfig) -> list[list[str]]:
    """Of each picture the captions of its mirror image; none at all where pictures are not mirrored."""
    if not augmentation.flip:
        return [[] for _ in pictures]
    captions: dict[str, list[str]] = {}
    for picture in pictures:
        captions.setdefault(picture.source, []).extend(picture.captions)
    languages = sides.languages_of(captions, augmentation.language)
    made = [[sides.mirrored(c, languages[picture.source]) for c in picture.captions] for picture in pictures]
    return [[c for c in mine if c is not None] for mine in made]


def padded(captions: Sequence[Sequence[Sequence[int]]], most: int | None = None) -> Tensor:
    """Word ids of B pictures x N captions -> (B, N, T + 1): start, words, end, padding.

    A caption of more than `most` words is cut, and has no end: it would be one in mid-sentence.
    """

    def said_of(ids: Sequence[int]) -> list[int]:
        return [START, *ids, END] if most is None or len(ids) <= most else [START, *ids[:most]]

    said = [[said_of(ids) for ids in mine] for mine in captions]
    T = max(len(ids) for mine in said for ids in mine)
    words = torch.full((len(said), len(said[0]), T), PAD, dtype=torch.int64)
    for b, mine in enumerate(said):
        for n, ids in enumerate(mine):
            words[b, n, : len(ids)] = torch.tensor(ids)
    return words
