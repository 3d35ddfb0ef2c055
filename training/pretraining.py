"""The decoder as a language model: it learns from sentences without pictures, before pictures come.

A decoder that looks at tags (`model.decoder.tag_slots`) learns here too how tags become a sentence: sentences of one
picture that nobody has are given the tags that the head might have seen in it, right and wrong ones (`Imagined`).
"""

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
from model.vocabulary import PAD, words_of
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

SENSITIVITY = 1.6  # d' of the release's head for tags on validation pictures (`training.finishing.tags.sensitivity`)


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

    def loss(self, words: Tensor, tags: Tensor, label_smoothing: float, own_share: float = 0.0) -> Tensor:
        """Cross-entropy a word of sentences (B, 1, T + 1), start to end, padded. tags: (B, G), their probabilities."""
        memory = self.no_picture(len(words))
        if self.captioner.slots:
            decoder = self.captioner.decoder
            x = decoder.places_of(self.captioner.likely(tags))
            keys = torch.cat([memory.keys, decoder.key(x)], 1)
            values = torch.cat([memory.values, decoder.value(x)], 1)
            memory = Memory(keys, values, memory.start)
        return likelihood_loss(self.captioner, memory, words, label_smoothing, own_share)


class Imagined:
    """What a head for tags might say of pictures that nobody has, of which people said these `lines` of sentences.

    The head is taken for an observer whose evidence is normal, of a sensitivity d' of `SENSITIVITY`: a tag's
    log-likelihood ratio is N(d'^2 / 2, d'^2) where somebody says its word and N(-d'^2 / 2, d'^2) where nobody does
    (Green and Swets 1966). Bayes' rule makes a probability of it and of how often the word is said, so the tags are
    as often wrong as they say themselves.
    """

    def __init__(self, lines: Sequence[Sequence[str]], tags: Sequence[str]) -> None:
        place = {tag: i for i, tag in enumerate(tags)}
        said = ([place[word] for sentence in line for word in words_of(sentence) if word in place] for line in lines)
        self.said = [np.unique(np.array(each, np.int64)) for each in said]
        counts = np.bincount(np.concatenate([*self.said, np.zeros(0, np.int64)]), minlength=len(tags))
        share = (counts + 0.5) / (len(lines) + 1)
        self.prior = np.log(share / (1 - share)).astype(np.float32)

    def __call__(self, lines: Sequence[int], rng: np.random.Generator) -> Tensor:
        """Probabilities (B, G) of B of the lines."""
        shift = np.full((len(lines), len(self.prior)), -(SENSITIVITY**2) / 2, np.float32)
        for row, line in zip(shift, lines, strict=True):
            row[self.said[line]] *= -1
        evidence = shift + SENSITIVITY * rng.standard_normal(shift.shape, np.float32)
        return torch.from_numpy(self.prior + evidence).sigmoid()


class Likelihood:
    """What a step goes down: how unlikely sentences are of no picture."""

    metric = "perplexity"

    def __init__(self, model: LanguageModel, config: TrainConfig) -> None:
        self.model, self.config = model, config

    def __call__(self, batch: Batch, own_share: float) -> tuple[Tensor, float]:
        """The loss of a batch, and its perplexity."""
        loss = self.model.loss(batch.words, batch.inputs, self.config.label_smoothing, own_share)
        return loss * weight(batch.words), math.exp(min(float(loss.detach()), 20))


class SentenceSource:
    """Sentences in shuffled batches that depend on seed and epoch alone: as many as the captions of a batch are.

    lines: of sentences; those of one line are of one picture. A batch's inputs are tags of it (`Imagined`).
    """

    def __init__(self, lines: Sequence[Sequence[str]], captioner: Captioner, config: TrainConfig) -> None:
        self.config = config
        self.ids = [captioner.vocabulary.encode(sentence) for line in lines for sentence in line]
        self.line = np.repeat(np.arange(len(lines)), [len(line) for line in lines])
        self.imagined = Imagined(lines, captioner.config.tags if captioner.slots else ())
        self.lengths = np.array([min(len(ids), config.max_words) for ids in self.ids])
        self.size = config.batch_size * config.captions_per_picture * distributed.world_size()

    def __len__(self) -> int:
        return batches_of(len(self.ids), self.size)

    def batches(self, epoch: int, device: torch.device, skip: int = 0) -> Iterator[Batch]:
        rng = np.random.default_rng([self.config.seed, epoch])
        for rows in shuffled(rng.permutation(len(self.ids)), self.lengths, self.size, rng)[skip:]:
            mine = distributed.shard(rows.tolist())
            words = padded([[self.ids[row]] for row in mine], self.config.max_words).to(device)
            tags = self.imagined(self.line[mine].tolist(), rng).to(device)
            yield Batch(tags, words, list(mine), [False] * len(mine))


def pretrain(
    recipe: Recipe,
    data: CaptionData,
    lines: Sequence[Sequence[str]],
    run: Path,
    device: torch.device,
    init: Path | None = None,
) -> Path:
    """Train a decoder on `lines` of sentences; the checkpoint, from which training with pictures goes on.

    A fresh one's vocabulary has the words of the sentences and of the captions of `data`; its encoder is as `recipe`
    begins with it. init: the checkpoint to begin with in its place, which must have tags for a decoder that is to look
    at them. The best epoch is the one to which the validation captions, said of no picture, are least of a surprise.
    """
    torch.manual_seed(recipe.train.seed)
    sentences = [sentence for line in lines for sentence in line]
    captioner = initial_captioner(recipe, data, init, sentences).to(device)
    recipe = as_run(replace(recipe, train_stages=0), captioner, device)
    config = recipe.train
    wanted = [picture.captions for picture in data.required("val")]
    made_from = {
        "vocabulary": captioner.vocabulary.fingerprint(),
        "sentences": digest(sentences),
        "validation captions": digest([caption for captions in wanted for caption in captions]),
        "processes": str(distributed.world_size()),
    }
    saved = distributed.broadcast(lambda: read_state(run / STATE, recipe, made_from))
    model = LanguageModel(captioner).to(device)
    source = SentenceSource(lines, captioner, config)
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
def surprise(model: LanguageModel, lines: Sequence[Sequence[str]], config: TrainConfig, device: torch.device) -> float:
    """Mean cross-entropy a word of captions of no picture, those of a line of the same one."""
    model.eval()
    source = SentenceSource(lines, model.captioner, config)
    order = sorted(range(len(source.ids)), key=lambda row: len(source.ids[row]))
    rng = np.random.default_rng(0)
    total = count = 0.0
    for start in range(0, len(order), 500):
        rows = order[start : start + 500]
        words = padded([[source.ids[row]] for row in rows], LONGEST).to(device)
        tags = source.imagined(source.line[rows].tolist(), rng).to(device)
        said = float((words[..., 1:] != PAD).sum())
        with autocast(device, config.precision):
            total, count = total + said * float(model.loss(words, tags, 0.0)), count + said
    return total / count
