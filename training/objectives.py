"""What a step goes down: the likelihood of captions, or their reward; and how candidates for it are found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.captioner import Captioner
from model.decoder import Memory
from model.encoder import as_regions
from model.runtime.torch_engine import TorchStepper
from model.search import find_hypotheses
from model.vocabulary import END, PAD, START, Vocabulary
from training import distributed
from training.batching import Batch, CaptionSource
from training.config import TrainConfig
from training.scoring.bleu import BleuCounts, sentence_bleu
from training.scoring.cider import CiderD
from training.scoring.objects import Objects


class Objective:
    """What a step minimises, as `config` says: the likelihood of captions, or the reward of found ones, or both.

    teachers: captioners whose mean probabilities `config.teacher_share` of the likelihood loss follows.
    """

    def __init__(
        self, captioner: Captioner, source: CaptionSource, config: TrainConfig, teachers: Sequence[Captioner]
    ) -> None:
        self.captioner, self.config, self.teachers = captioner, config, teachers
        self.frozen, self.pictures = source.features.stages, len(source.ids)
        self.metric = "perplexity" if config.objective == "likelihood" else "reward"  # mean of a batch
        if config.objective == "cider":
            # Mirrored pictures have references of their own, in the second half.
            references = [*source.ids, *source.mirrored_ids]
            self.reward = Reward(
                captioner.vocabulary, references, self.pictures, config.object_weight, config.bleu_weight
            )

    def __call__(self, batch: Batch, own_share: float) -> tuple[Tensor, float]:
        """The loss of a batch, and the value of `metric`."""
        config = self.config
        memory = memory_of(self.captioner, batch.inputs, self.frozen)
        if config.objective == "likelihood":
            loss = self.likelihood(memory, batch, own_share)
            return loss * weight(batch.words), math.exp(min(float(loss.detach()), 20))
        rows = [row + self.pictures * flip for row, flip in zip(batch.rows, batch.flipped, strict=True)]
        seen = Memory(*(part.detach() for part in memory))
        find = best if config.candidates == "beam" else draw
        words = find(self.captioner, seen, config.samples, config.max_words)
        loss, reward = cider_loss(self.captioner, memory, rows, self.reward, words)
        loss = loss * weight(words)
        if config.likelihood_weight:
            likelihood = self.likelihood(memory, batch, own_share) * weight(batch.words)
            loss = loss + config.likelihood_weight * likelihood
        return loss, reward

    def likelihood(self, memory: Memory, batch: Batch, own_share: float) -> Tensor:
        """`likelihood_loss`, with what the teachers see of the same pictures."""
        with torch.no_grad():
            theirs = [(teacher, memory_of(teacher, batch.inputs, self.frozen)) for teacher in self.teachers]
        smoothing, share = self.config.label_smoothing, self.config.teacher_share
        return likelihood_loss(self.captioner, memory, batch.words, smoothing, own_share, theirs, share)


def weight(words: Tensor) -> Tensor | float:
    """By what to multiply a mean loss over the words (B, N, T + 1) of this process: what it counts among all."""
    return distributed.weight((words[..., 1:] != PAD).sum())


def memory_of(captioner: Captioner, inputs: Tensor, frozen_stages: int) -> Memory:
    """What the decoder needs, from what left the encoder's first `frozen_stages` stages."""
    return captioner.memory(regions_of(captioner, inputs, frozen_stages))


def regions_of(captioner: Captioner, inputs: Tensor, frozen_stages: int) -> Tensor:
    """What the encoder makes of a picture, (B, L, D), from what left its first `frozen_stages` stages."""
    if frozen_stages == 0:
        inputs = captioner.normalise(inputs).contiguous(memory_format=torch.channels_last)
    return as_regions(captioner.encoder.stages[frozen_stages:](inputs.float()))


def likelihood_loss(
    captioner: Captioner,
    memory: Memory,
    words: Tensor,
    label_smoothing: float,
    own_share: float = 0.0,
    teachers: Sequence[tuple[Captioner, Memory]] = (),
    teacher_share: float = 0.0,
) -> Tensor:
    """Mean cross-entropy a word. `own_share` of the input words are replaced by the model's own guesses.

    That is scheduled sampling (Bengio et al. 2015) in two parallel passes (Mihaylova & Martins 2019).
    `teacher_share` of the loss is the cross-entropy against the teachers' mean probabilities, each
    teacher with its own memory of the same pictures: distillation of an ensemble (Hinton et al. 2015).
    """
    inputs, targets = words[..., :-1], words[..., 1:]
    if own_share > 0:
        with torch.no_grad():
            guesses = captioner.decoder(memory, inputs).argmax(-1)  # (B, N, T): guesses of targets
        own = torch.rand_like(inputs[..., 1:], dtype=torch.float32) < own_share
        own &= inputs[..., 1:] != PAD
        inputs = torch.cat([inputs[..., :1], torch.where(own, guesses[..., :-1], inputs[..., 1:])], -1)
    said = targets != PAD
    logits = captioner.decoder.logits(captioner.decoder.outputs(memory, inputs)[said]).float()  # no work for padding
    loss = F.cross_entropy(logits, targets[said], label_smoothing=label_smoothing)
    if not teachers:
        return loss
    with torch.no_grad():
        taught = torch.zeros_like(logits)
        for teacher, its_memory in teachers:
            decoder = teacher.decoder
            taught += decoder.logits(decoder.outputs(its_memory, inputs)[said]).float().softmax(-1) / len(teachers)
    return (1 - teacher_share) * loss + teacher_share * F.cross_entropy(logits, taught)


def cider_loss(
    captioner: Captioner,
    memory: Memory,
    rows: Sequence[int],
    reward: Callable[[Sequence[Sequence[int]], Sequence[int]], NDArray[np.float64]],
    words: Tensor,
) -> tuple[Tensor, float]:
    """Self-critical loss (Rennie et al. 2017) of candidates (B, N, T + 1), start first; and their mean reward.

    The baseline is the mean of the other candidates. reward: (token ids of captions, a row of each) -> (captions,).
    The end counts as a word of the n-grams, so that captions that break off ("a dog in a") earn less.
    """
    B, N, _ = words.shape
    said = words[..., 1:] != PAD
    captions = [[i for i in ids if i != PAD] for ids in words[..., 1:].flatten(0, 1).tolist()]
    scores = reward(captions, [row for row in rows for _ in range(N)])
    r = torch.from_numpy(scores).float().view(B, N).to(words.device)
    advantage = (r - r.mean(1, keepdim=True)) * N / (N - 1)  # = r - mean of the others
    outputs = captioner.decoder.outputs(memory, words[..., :-1])[said]
    log_probs = captioner.decoder.log_probabilities(captioner.decoder.logits(outputs).float(), 1.0)
    chosen = log_probs.gather(-1, words[..., 1:][said][:, None])[:, 0]
    weights = advantage[:, :, None].expand_as(said)[said]
    return -(weights * chosen).sum() / said.sum(), float(r.mean())


class Reward:
    """What a caption of a training picture earns: CIDEr-D, and something for BLEU and for every object it names.

    references: for each picture its captions as token ids. documents: how many of them, from the first, document
    frequencies come from. object_weight: added for each object that some reference names, taken for each other.
    bleu_weight: how often the BLEU-4 of the sentence is added.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        references: Sequence[Sequence[Sequence[int]]],
        documents: int,
        object_weight: float,
        bleu_weight: float = 0.0,
    ) -> None:
        self.vocabulary, self.object_weight, self.bleu_weight = vocabulary, object_weight, bleu_weight
        ids = [[vocabulary.counted([*caption, END]) for caption in mine] for mine in references]
        self.cider = CiderD(ids, ids[:documents])
        self.bleu = BleuCounts(ids) if bleu_weight else None
        self.objects = Objects()
        self.named = [set().union(*map(self._objects, mine)) for mine in references] if object_weight else []

    def __call__(self, captions: Sequence[Sequence[int]], rows: Sequence[int]) -> NDArray[np.float64]:
        counted = [self.vocabulary.counted(ids) for ids in captions]
        scores = self.cider.score(counted, rows)
        if self.bleu:
            scores += self.bleu_weight * sentence_bleu(self.bleu(counted, rows))
        if self.object_weight:
            for i, (ids, row) in enumerate(zip(captions, rows, strict=True)):
                said = self._objects(ids)
                right = len(said & self.named[row])
                scores[i] += self.object_weight * (right - (len(said) - right))
        return scores

    def _objects(self, ids: Sequence[int]) -> set[int]:
        return self.objects.named(" ".join(self.vocabulary.decode(ids)))


@torch.no_grad()
def best(captioner: Captioner, memory: Memory, count: int, max_words: int) -> Tensor:
    """The `count` captions that beam search finds, (B, N, T + 1) word ids, start first, padded.

    Better than samples as candidates (Cornia et al. 2020): those of a decoder trained on few pictures are mostly junk,
    and to tell junk from junk teaches little.
    """
    settings = replace(
        captioner.config.search, strategy="beam", beam_size=count, num_captions=count, max_length=max_words
    )
    found = find_hypotheses(TorchStepper(captioner.decoder, memory), settings)
    T = max(len(h.words) for mine in found for h in mine) + 1
    words = torch.full((len(found), count, T), PAD, dtype=torch.int64)
    words[..., 0] = START
    for b, mine in enumerate(found):
        for n in range(count):
            ids = mine[n % len(mine)].words
            words[b, n, 1 : len(ids) + 1] = torch.tensor(ids)
    return words.to(memory.keys.device)


@torch.no_grad()
def draw(captioner: Captioner, memory: Memory, samples: int, max_words: int) -> Tensor:
    """Sample from the model: (B, N, T + 1) word ids, start first, ended by END or cut, padded."""
    stepper = TorchStepper(captioner.decoder, memory)
    log_probs = stepper.step(stepper.start(), None).expand(-1, samples, -1)
    B, N, _ = log_probs.shape
    same = torch.arange(N, device=log_probs.device).expand(B, N)
    words = [torch.full((B, N), START, device=log_probs.device)]
    over = torch.zeros((B, N), dtype=torch.bool, device=log_probs.device)
    for t in range(max_words):
        # Exponential races (Gumbel's trick): one draw from each row without sorting or summing.
        race = log_probs.float().exp() / torch.empty_like(log_probs, dtype=torch.float32).exponential_()
        word = race.argmax(-1).masked_fill(over, PAD)
        words.append(word)
        over = over | (word == END)
        if bool(over.all()) or t == max_words - 1:
            break
        log_probs = stepper.step(word, torch.zeros_like(same) if t == 0 else same)
    return torch.stack(words, -1)
