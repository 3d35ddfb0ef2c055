"""Fits the last stage of a caption (`model.rerank`): what makes pictures alike, and whom to believe how much."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.caption import Caption
from model.captioner import Captioner
from model.config import RerankConfig
from model.neighbours import Neighbours
from model.rerank import agreement, log_odds, tag_places
from model.vocabulary import END, words_of
from training import features
from training.augment import AugmentConfig
from training.data import Picture
from training.objectives import regions_of
from training.scoring.bleu import BleuCounts, corpus_bleu
from training.scoring.cider import CiderD
from training.scoring.metrics import bootstrap, interval
from training.validation import chosen_by

log = logging.getLogger("training.rerank")

NEIGHBOURS = (10, 20, 40)  # tried on validation, like the weights below
SEARCH_WEIGHTS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
TAG_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4)
THING_WEIGHTS = (0.0, 0.02, 0.05, 0.1)
_BATCH = 16  # pictures a forward pass


@torch.inference_mode()
def pooled(captioner: Captioner, pictures: Sequence[Picture], cache: Path) -> tuple[list[Picture], NDArray[np.float32]]:
    """The pictures that can be decoded, and the mean of their regions' features, (P, D); `cache` as in training."""
    device = next(captioner.parameters()).device
    stages = features.before_head(captioner, len(captioner.encoder.stages))
    cached = features.cached(captioner, stages, pictures, 1, AugmentConfig(), cache, device)
    captioner.encoder.eval()
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(cached.pictures), _BATCH):
        rows = range(start, min(start + _BATCH, len(cached.pictures)))
        regions = regions_of(captioner, cached.batch(rows, [0] * len(rows), device), stages)
        found.append(regions.mean(1).cpu().numpy())
    return list(cached.pictures), np.concatenate(found)


def fit_feature(features: NDArray[np.float32], size: int) -> nn.Linear:
    """The `size` directions in which features (P, D) vary most, each scaled down by the root of its deviation."""
    mean = features.mean(0)
    values, vectors = np.linalg.eigh(np.cov(features - mean, rowvar=False))
    best = np.argsort(-values)[:size]
    weight = (vectors[:, best] / values[best].clip(1e-6) ** 0.25).T.astype(np.float32)
    layer = nn.Linear(features.shape[1], size)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(-weight @ mean))
    return layer


def apply(layer: nn.Linear, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pooled features (P, D) -> what similar pictures are found by, (P, d), as `Captioner.see` gives it."""
    with torch.inference_mode():
        found: NDArray[np.float32] = torch.nn.functional.normalize(layer(torch.from_numpy(features)), dim=-1).numpy()
    return found


def index(captioner: Captioner, features: NDArray[np.float32], pictures: Sequence[Picture]) -> Neighbours:
    """The index of training pictures with their features (P, d)."""
    encode = captioner.vocabulary.encode
    return Neighbours.build(features, [[encode(caption) for caption in picture.captions] for picture in pictures])


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a search found for one picture: what each is worth, and what speaks for it; all (C,)."""

    cider: NDArray[np.float64]  # against the references, percent
    bleu: NDArray[np.float64]  # (C, 6), `BleuCounts`
    search: NDArray[np.float64]
    consensus: Mapping[int, NDArray[np.float32]]  # by the number of neighbours
    tags: NDArray[np.float32]
    things: NDArray[np.float32]

    def chosen(self, config: RerankConfig) -> int:
        """The place of the one that `config` puts first."""
        scores = self.consensus[config.neighbours] + config.search * self.search
        return int(np.argmax(scores + config.tags * self.tags + config.things * self.things))


def weigh(
    captioner: Captioner,
    neighbours: Neighbours,
    pictures: Sequence[Picture],
    found: Sequence[Sequence[Caption]],
    features: NDArray[np.float32],
    tags: NDArray[np.float32],
    length_penalty: float,
) -> list[Candidates]:
    """The candidates of each picture, as a search with that penalty ranks them. features: (P, d), tags: (P, G)."""
    ids = {word: i for i, word in enumerate(captioner.vocabulary.words)} | {".": END}
    config = captioner.config
    places = tag_places(captioner.vocabulary, config.tags)
    things = tag_places(captioner.vocabulary, config.tags, config.things)
    scorers: dict[str, tuple[CiderD, BleuCounts, dict[str, int]]] = {}
    for source in dict.fromkeys(picture.source for picture in pictures):
        mine = [picture for picture in pictures if picture.source == source]
        references = [[words_of(caption) for caption in picture.captions] for picture in mine]
        names = {picture.name: row for row, picture in enumerate(mine)}
        scorers[source] = CiderD(references), BleuCounts(references), names
    weighed = []
    for picture, captions, feature, seen in zip(pictures, found, features, tags, strict=True):
        cider, bleu, names = scorers[picture.source]
        said, rows = [words_of(caption.text) for caption in captions], [names[picture.name]] * len(captions)
        words = [[ids[token.text] for token in caption.tokens] for caption in captions]
        weighed.append(
            Candidates(
                100 * cider.score(said, rows),
                bleu(said, rows),
                np.array([c.log_probability / len(c.tokens) ** length_penalty for c in captions]),
                {count: neighbours.consensus(feature, words, count) for count in NEIGHBOURS},
                agreement(words, places, seen),
                log_odds(words, things, seen),
            )
        )
    return weighed


def choose(
    candidates: Sequence[Candidates],
    sources: Sequence[str],
    weights: Mapping[str, float],
    base: RerankConfig,
    tags: Sequence[float] = TAG_WEIGHTS,
    things: Sequence[float] = THING_WEIGHTS,
) -> tuple[RerankConfig, list[dict[str, Any]]]:
    """The settings with the best sum of CIDEr and BLEU-4, percent, of those tried; and what each gave.

    weights: what each set's sum counts in their mean.
    """
    tried: list[dict[str, Any]] = []
    rows = {source: np.flatnonzero([name == source for name in sources]) for source in weights}
    of_tags = tags if any(mine.tags.any() for mine in candidates) else (0.0,)
    of_things = things if any(mine.things.any() for mine in candidates) else (0.0,)
    for count, search, tag, thing in itertools.product(NEIGHBOURS, SEARCH_WEIGHTS, of_tags, of_things):
        config = replace(base, neighbours=count, search=search, tags=tag, things=thing)
        places = [mine.chosen(config) for mine in candidates]
        cider = np.array([mine.cider[place] for mine, place in zip(candidates, places, strict=True)])
        counts = np.array([mine.bleu[place] for mine, place in zip(candidates, places, strict=True)])
        ciders = {source: float(cider[some].mean()) for source, some in rows.items()}
        bleus = {source: 100 * corpus_bleu(counts[some]) for source, some in rows.items()}
        mean = chosen_by(ciders, weights) + chosen_by(bleus, weights)
        tried.append({"config": config, "CIDEr": ciders, "BLEU-4": bleus, "mean": mean})
    best: RerankConfig = max(tried, key=lambda row: row["mean"])["config"]
    return best, tried


def compare(
    candidates: Sequence[Candidates], sources: Sequence[str], weights: Mapping[str, float], base: RerankConfig
) -> list[dict[str, Any]]:
    """What each witness adds: a row for the search's own order, then with similar pictures, with tags, with things.

    Each with the best settings of its kind (`choose`): for each set the CIDEr, and the change against the search's own
    order with its 95 % bootstrap interval over pictures.
    """
    own = np.array([mine.cider[int(np.argmax(mine.search))] for mine in candidates])
    witnesses = {
        "similar pictures": choose(candidates, sources, weights, base, (0.0,), (0.0,))[0],
        "and tags": choose(candidates, sources, weights, base, things=(0.0,))[0],
        "and things": choose(candidates, sources, weights, base)[0],
    }
    chosen = {name: np.array([m.cider[m.chosen(config)] for m in candidates]) for name, config in witnesses.items()}
    rows = []
    for name, ciders in {"the search alone": own, **chosen}.items():
        row: dict[str, Any] = {"order": name, "CIDEr": {}, "change": {}, "interval": {}}
        for source in weights:
            some = np.array([other == source for other in sources])
            change = (ciders - own)[some]
            low, high = interval(bootstrap(len(change)) @ change / len(change))
            row["CIDEr"][source] = round(float(ciders[some].mean()), 2)
            row["change"][source] = round(float(change.mean()), 2)
            row["interval"][source] = [round(low, 2), round(high, 2)]
        rows.append(row)
    return rows
