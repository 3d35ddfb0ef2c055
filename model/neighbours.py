"""Captions of similar pictures, to choose between candidates: consensus re-ranking (Devlin et al. 2015).

Nearest neighbour approaches for image captioning (arXiv:1505.04467): of several candidates that a search found for a
picture, the best is the one most like what people said of the most similar training pictures. What this index holds
of a training picture is its feature in 8 bits and its captions as weights of hashed n-grams:

    u(sentence) = for each n of 1 to 4: tf-idf of its n-grams, scaled to length 1
    consensus(candidate) = 10 / 4 * u(candidate) . mean over neighbours, and their captions, of u(caption)

That is CIDEr (Vedantam et al. 2015) of the candidate against all their captions, without what CIDEr-D adds for
games that nobody plays here, and so one sparse product instead of a hundred comparisons.
"""

from __future__ import annotations

import itertools
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import CheckpointError

ORDERS = 4  # n-grams of 1 to 4 tokens
_LEVELS = 255  # of a weight in 8 bits


@dataclass(frozen=True, slots=True)
class Neighbours:
    """N training pictures and the G n-grams that the captions of at least two of them hold.

    features: (N, d) int8 directions. hashes: (G,) uint32, ascending. idf: (G,) float32.
    offsets: (N + 1,) int64: picture i's n-grams are grams[offsets[i] : offsets[i + 1]], places in `hashes`, int32,
    and weights, uint8, at the same places; a weight stands for weight * scale. unseen: idf of any other n-gram.
    """

    features: NDArray[np.int8]
    hashes: NDArray[np.uint32]
    idf: NDArray[np.float32]
    offsets: NDArray[np.int64]
    grams: NDArray[np.int32]
    weights: NDArray[np.uint8]
    scale: float
    unseen: float
    directions: NDArray[np.float32]  # (N, d), `features` with length 1

    @classmethod
    def build(cls, features: NDArray[np.float32], captions: Sequence[Sequence[Sequence[int]]]) -> Neighbours:
        """From pictures' features (N, d) and their captions as token ids."""
        hashed = [hash_ngrams(mine) for mine in captions]
        frequency: Counter[int] = Counter()
        for _, hashes_of_one in hashed:
            frequency.update(set(hashes_of_one.tolist()))
        hashes = np.array(sorted(gram for gram, count in frequency.items() if count > 1), np.uint32)
        unseen = float(np.log(len(captions)))
        idf = (unseen - np.log([frequency[gram] for gram in hashes.tolist()])).astype(np.float32)
        offsets, grams, weights = [0], [], []
        for mine, of in zip(captions, hashed, strict=True):
            _, places, values = _units(*of, hashes, idf, unseen)
            distinct, which = np.unique(places, return_inverse=True)
            summed = np.bincount(which, values, len(distinct)) / len(mine)
            listed = distinct >= 0  # the others are n-grams of no other picture
            grams.append(distinct[listed].astype(np.int32))
            weights.append(summed[listed].astype(np.float32))
            offsets.append(offsets[-1] + len(grams[-1]))
        flat = np.concatenate(weights)
        scale = float(flat.max()) / _LEVELS
        rounded = np.rint(flat / scale).astype(np.uint8)
        return cls.of(
            _in_8_bits(features), hashes, idf, np.array(offsets), np.concatenate(grams), rounded, scale, unseen
        )

    @classmethod
    def of(
        cls,
        features: NDArray[np.int8],
        hashes: NDArray[np.uint32],
        idf: NDArray[np.float32],
        offsets: NDArray[np.int64],
        grams: NDArray[np.int32],
        weights: NDArray[np.uint8],
        scale: float,
        unseen: float,
    ) -> Neighbours:
        """From what a file holds."""
        directions = features.astype(np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True).clip(1e-6)
        return cls(features, hashes, idf, offsets, grams, weights, scale, unseen, directions)

    def nearest(self, feature: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The places of the `count` pictures most similar to a feature (d,), in no order."""
        similarity = np.vecdot(self.directions, feature)  # a product of matrices would wake threads of BLAS's
        count = min(count, len(similarity))
        return np.argpartition(similarity, len(similarity) - count)[len(similarity) - count :]

    def consensus(
        self, feature: NDArray[np.float32], candidates: Sequence[Sequence[int]], count: int
    ) -> NDArray[np.float32]:
        """How like the captions of the `count` nearest pictures each candidate (token ids) is: (C,), 0 to 10."""
        near = self.nearest(feature, count)
        some = list(map(slice, self.offsets[near].tolist(), self.offsets[near + 1].tolist()))
        grams, weights = (np.concatenate([part[one] for one in some]) for part in (self.grams, self.weights))
        shared = np.bincount(grams, weights, len(self.hashes) + 1)  # the last: n-grams not listed
        groups, places, values = _units(*hash_ngrams(candidates), self.hashes, self.idf, self.unseen)
        scores = np.bincount(groups // ORDERS, shared[places] * values, len(candidates))
        return (10 / ORDERS * self.scale / count * scores).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write all but `directions`, as NumPy's .npz."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                features=self.features, hashes=self.hashes, idf=self.idf.astype(np.float16), offsets=self.offsets,
                grams=self.grams, weights=self.weights, scale=self.scale, unseen=self.unseen,
            )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Neighbours:
        """What `save` wrote; raises `CheckpointError` for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("features", "hashes", "offsets", "grams", "weights")}
                scale, unseen = float(file["scale"]), float(file["unseen"])
                return cls.of(**arrays, idf=file["idf"].astype(np.float32), scale=scale, unseen=unseen)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again") from error


def hash_ngrams(sentences: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The hashes of all n-grams of S sentences of token ids, repeats included, and the group of each.

    Sentence s's n-grams of order n are group ORDERS * s + n - 1. All at once: an array operation costs more than
    the few numbers of one sentence.
    """
    lengths = np.array([len(ids) for ids in sentences], np.int64)
    sentence = np.repeat(np.arange(len(sentences)), lengths)
    tokens = np.fromiter(itertools.chain.from_iterable(sentences), np.uint64, len(sentence)) + np.uint64(1)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(sentence))  # tokens from here to the sentence's end
    # The longest first: then those that have a token after so many are the head of the array.
    starts = [np.flatnonzero(left >= n) for n in range(ORDERS, 0, -1)]
    counts, at = [len(each) for each in starts], np.concatenate(starts)
    order = np.repeat(np.arange(ORDERS, 0, -1), counts)
    mixed = order.astype(np.uint64)
    for i in range(ORDERS):  # the finaliser of splitmix64 after each token
        some = mixed[: sum(counts[: ORDERS - i])]
        some += tokens[at[: len(some)] + i]
        some *= np.uint64(0x9E3779B97F4A7C15)
        some ^= some >> np.uint64(30)
        some *= np.uint64(0xBF58476D1CE4E5B9)
        some ^= some >> np.uint64(27)
    return ORDERS * sentence[at] + order - 1, (mixed >> np.uint64(32)).astype(np.uint32)


def _units(
    groups: NDArray[np.int64],
    grams: NDArray[np.uint32],
    hashes: NDArray[np.uint32],
    idf: NDArray[np.float32],
    unseen: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The tf-idf of each group's n-grams, scaled to length 1: groups, places in `hashes` (-1: not there), values."""
    distinct, counts = np.unique(groups.astype(np.uint64) << np.uint64(32) | grams, return_counts=True)
    groups, grams = (distinct >> np.uint64(32)).astype(np.int64), distinct.astype(np.uint32)
    places = np.searchsorted(hashes, grams)
    places[places == len(hashes)] = -1
    if len(hashes):
        places[hashes[places] != grams] = -1
    values = counts * np.where(places < 0, unseen, idf[places] if len(idf) else 0)
    lengths = np.sqrt(np.bincount(groups, values**2))
    return groups, places, values / lengths.clip(1e-6)[groups]


def _in_8_bits(features: NDArray[np.float32]) -> NDArray[np.int8]:
    scaled: NDArray[np.float32] = features / np.abs(features).max(1, keepdims=True).clip(1e-6)
    return np.rint(127 * scaled).astype(np.int8)
