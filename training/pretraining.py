"""The decoder as a language model: it learns from sentences without pictures, before pictures come."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.captioner import Captioner
from model.decoder import Decoder, Memory
from model.vocabulary import PAD
from training import distributed
from training.batching import Batch, batches_of, padded, shuffled
from training.checkpointing import STATE, digest, read_state
from training.config import Recipe, TrainConfig
from training.data import CaptionData
from training.initialisation import initial_captioner
from training.loop import as_run, fit
from training.objectives import likelihood_loss, weight
from training.optimisation import autocast, parameter_groups
from training.validation import LONGEST

log = logging.getLogger("training")


class NoPicture(nn.Module):
    """What the decoder remembers of a picture when there is none: one place to look at, and a first state; learnt."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        places, width = (1, decoder.config.hidden_size) if decoder.attends else (0, 0)
        self.keys = nn.Parameter(torch.zeros(1, places, width))
        self.values = nn.Parameter(torch.zeros(1, places, width))
        self.start = nn.Parameter(torch.zeros(1, decoder.layer1.states * decoder.config.hidden_size))

    def forward(self, count: int) -> Memory:
        """The same for `count` sentences; the first state within the bounds of one that comes from a picture."""
        return Memory(*(part.expand(count, *part.shape[1:]) for part in (self.keys, self.values, self.start.tanh())))


class LanguageModel(nn.Module):
    """A captioner with what it needs while it learns without pictures."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.captioner, self.no_picture = captioner, NoPicture(captioner.decoder)

    def loss(self, words: Tensor, label_smoothing: float, own_share: float = 0.0) -> Tensor:
        """Cross-entropy a word of sentences (B, 1, T + 1), start to end, padded."""
        return likelihood_loss(self.captioner, self.no_picture(len(words)), words, label_smoothing, own_share)


class Likelihood:
    """What a step goes down: how unlikely sentences are of no picture."""

    metric = "perplexity"

    def __init__(self, model: LanguageModel, config: TrainConfig) -> None:
        self.model, self.config = model, config

    def __call__(self, batch: Batch, own_share: float) -> tuple[Tensor, float]:
        """The loss of a batch, and its perplexity."""
        loss = self.model.loss(batch.words, self.config.label_smoothing, own_share)
        return loss * weight(batch.words), math.exp(min(float(loss.detach()), 20))


class SentenceSource:
    """Sentences in shuffled batches that depend on seed and epoch alone: as many as the captions of a batch are."""

    def __init__(self, sentences: Sequence[str], captioner: Captioner, config: TrainConfig) -> None:
        self.config = config
        self.ids = [captioner.vocabulary.encode(sentence) for sentence in sentences]
        self.lengths = np.array([min(len(ids), config.max_words) for ids in self.ids])
        self.size = config.batch_size * config.captions_per_picture * distributed.world_size()

    def __len__(self) -> int:
        return batches_of(len(self.ids), self.size)

    def batches(self, epoch: int, device: torch.device, skip: int = 0) -> Iterator[Batch]:
        rng = np.random.default_rng([self.config.seed, epoch])
        for rows in shuffled(rng.permutation(len(self.ids)), self.lengths, self.size, rng)[skip:]:
            mine = distributed.shard(rows.tolist())
            words = padded([[self.ids[row]] for row in mine], self.config.max_words).to(device)
            yield Batch(words.new_empty(len(mine), 0), words, list(mine), [False] * len(mine))


def pretrain(recipe: Recipe, data: CaptionData, sentences: Sequence[str], run: Path, device: torch.device) -> Path:
    """Train a fresh decoder on sentences; the checkpoint, from which training with pictures goes on.

    Its vocabulary has the words of the sentences and of the captions of `data`; its encoder is as `recipe` begins
    with it. The best epoch is the one to which the validation captions, said of no picture, are least of a surprise.
    """
    torch.manual_seed(recipe.train.seed)
    captioner = initial_captioner(recipe, data, None, sentences).to(device)
    recipe = as_run(replace(recipe, train_stages=0), captioner, device)
    config = recipe.train
    wanted = [caption for picture in data.required("val") for caption in picture.captions]
    made_from = {
        "vocabulary": captioner.vocabulary.fingerprint(),
        "sentences": digest(list(sentences)),
        "validation captions": digest(wanted),
        "processes": str(distributed.world_size()),
    }
    saved = distributed.broadcast(lambda: read_state(run / STATE, recipe, made_from))
    model = LanguageModel(captioner).to(device)
    source = SentenceSource(sentences, captioner, config)
    log.info("%d sentences without pictures, %d words known", len(sentences), len(captioner.vocabulary))

    def judge() -> tuple[dict[str, Any], float]:
        loss = surprise(model, wanted, config, device)
        return {"val_loss": loss, "val_perplexity": math.exp(loss)}, -loss

    groups = parameter_groups(captioner, len(captioner.encoder.stages), config)
    groups.append({"params": list(model.no_picture.parameters()), "peak": config.learning_rate,
                   "lr": config.learning_rate, "weight_decay": 0.0})  # fmt: skip
    return fit(
        recipe, model, groups, captioner, source, Likelihood(model, config), judge, run, device, saved, made_from
    )


@torch.no_grad()
def surprise(model: LanguageModel, captions: Sequence[str], config: TrainConfig, device: torch.device) -> float:
    """Mean cross-entropy a word of captions of no picture."""
    model.eval()
    ids = sorted((model.captioner.vocabulary.encode(caption) for caption in captions), key=len)
    total = count = 0.0
    for start in range(0, len(ids), 500):
        words = padded([[one] for one in ids[start : start + 500]], LONGEST).to(device)
        said = float((words[..., 1:] != PAD).sum())
        with autocast(device, config.precision):
            total, count = total + said * float(model.loss(words, 0.0)), count + said
    return total / count
