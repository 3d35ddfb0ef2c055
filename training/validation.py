"""Free-running validation on cached features, and which epoch is the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.captioner import Captioner
from model.config import SearchConfig
from model.runtime.torch_engine import TorchStepper
from model.search import Stepper, find_hypotheses
from model.vocabulary import Vocabulary, words_of
from training import distributed, objectives
from training.batching import padded
from training.config import TrainConfig
from training.data import Picture
from training.features import Features
from training.optimisation import autocast
from training.scoring.cider import CiderD
from training.scoring.metrics import repeats_bigram

FEWEST = 10  # validation pictures: CIDEr weighs words by how rare they are among these, and of a single one says 0


def score_of(result: Evaluation, pictures: Sequence[Picture], weights: Mapping[str, float]) -> float:
    """The score that chooses the best epoch: the sets' CIDEr by `weights`; of too few pictures, minus the loss."""
    return -result.loss if with_few_pictures(pictures, weights) else chosen_by(result.cider, weights)


def with_few_pictures(pictures: Sequence[Picture], weights: Mapping[str, float]) -> list[str]:
    """Those of the sets whose CIDEr would choose the best epoch that have fewer than `FEWEST` validation pictures."""
    counts = Counter(picture.source for picture in pictures)
    deciding = [name for name, weight in weights.items() if weight] or [pictures[0].source]
    return [name for name in deciding if counts[name] < FEWEST]


def chosen_by(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The mean of the sets' scores with these weights; without any the first set's."""
    if not weights:
        return next(iter(scores.values()))
    return sum(scores[name] * weight for name, weight in weights.items()) / sum(weights.values())


def best_epoch(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of a run's epochs, as history.json holds them, the one with the best score (`score_of`).

    Histories of older runs have none: there it is the first set's CIDEr.
    """

    def score(epoch: Mapping[str, Any]) -> float:
        return float(epoch["score"] if "score" in epoch else next(iter(epoch["val_cider"].values())))

    return max(history, key=score)


LONGEST = 100  # words of a caption that count in the validation loss


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Free-running validation: the captions and, by source data set, each one's CIDEr (percent)."""

    captions: list[list[str]]  # words, one caption a picture
    ciders: dict[str, NDArray[np.float64]]
    loss: float  # teacher-forced cross-entropy a word
    repeated: float  # share of captions that hold a bigram twice

    @property
    def cider(self) -> dict[str, float]:
        """The mean of each set."""
        return {source: float(each.mean()) for source, each in self.ciders.items()}

    def figures(self) -> dict[str, Any]:
        """What a history keeps of it."""
        return {
            "val_loss": self.loss,
            "val_cider": self.cider,
            "val_repeated": self.repeated,
            "distinct": len({" ".join(words) for words in self.captions}),
        }


@torch.no_grad()
def evaluate(captioner: Captioner, features: Features, search_config: SearchConfig, config: TrainConfig) -> Evaluation:
    """Caption every picture by free-running search and score it without Java (`training.scoring.cider`)."""
    captioner.eval()
    device = next(captioner.parameters()).device

    def speak(rows: list[int], words: Tensor) -> tuple[Stepper, Tensor]:
        memory = objectives.memory_of(captioner, features.batch(rows, [0] * len(rows), device), features.stages)
        return TorchStepper(captioner.decoder, memory), objectives.likelihood_loss(captioner, memory, words, 0.0)

    return evaluate_with(speak, captioner.vocabulary, features.pictures, device, search_config, config)


@torch.no_grad()
def evaluate_with(
    speak: Callable[[list[int], Tensor], tuple[Stepper, Tensor]],
    vocabulary: Vocabulary,
    pictures: Sequence[Picture],
    device: torch.device,
    search_config: SearchConfig,
    config: TrainConfig,
) -> Evaluation:
    """`evaluate`, of any model.

    speak: (rows of `pictures`, the words (B, N, T + 1) said of them) -> a stepper over them, the loss of the words.
    """
    parts: list[tuple[int, list[list[str]], float]] = []
    for start in distributed.shard(range(0, len(pictures), 100)):
        rows = list(range(start, min(start + 100, len(pictures))))
        ids = [[vocabulary.encode(c) for c in pictures[r].captions] for r in rows]
        # Whole, however much of them is taught; but one without end would fill the memory with padding.
        words = padded([[mine[i % len(mine)] for i in range(config.captions_per_picture)] for mine in ids], LONGEST)
        with autocast(device, config.precision):
            stepper, loss = speak(rows, words.to(device))
            found = find_hypotheses(stepper, search_config)
        parts.append((start, [vocabulary.decode(mine[0].words) if mine else [] for mine in found], float(loss)))
    parts = sorted(part for each in distributed.all_gather(parts) for part in each)
    captions = [caption for _, mine, _ in parts for caption in mine]
    repeated = sum(repeats_bigram(words) for words in captions) / len(captions)
    loss_a_word = np.average([loss for _, _, loss in parts], weights=[len(mine) for _, mine, _ in parts])
    return Evaluation(captions, ciders(captions, pictures), float(loss_a_word), repeated)


def ciders(captions: Sequence[Sequence[str]], pictures: Sequence[Picture]) -> dict[str, NDArray[np.float64]]:
    """CIDEr of each picture's caption against what people said of it, percent, by source data set."""
    found = {}
    for source in dict.fromkeys(picture.source for picture in pictures):
        rows = [i for i, picture in enumerate(pictures) if picture.source == source]
        scorer = CiderD([[words_of(c) for c in pictures[i].captions] for i in rows])
        found[source] = 100 * scorer.score([captions[i] for i in rows], range(len(rows)))
    return found
