"""One epoch of training, and evaluation; the wiring around them is `training.train`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.captioner import Captioner
from model.config import SearchConfig
from model.decoder import Memory
from model.encoder import as_regions, drop_paths
from model.runtime.torch_engine import TorchStepper
from model.search import Stepper, search
from model.vocabulary import END, PAD, START, Vocabulary, words_of
from training import distributed, sides
from training.augment import AugmentConfig, augment
from training.cider import CiderD
from training.config import TrainConfig
from training.data import Picture
from training.features import Features
from training.metrics import repeats_bigram
from training.objects import Objects
from training.process import Precision, native

LONGEST = 100  # words of a caption that count in the validation loss


class TrainingDiverged(RuntimeError):
    """The loss is not finite; the message says what to try."""


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
        full, rest = divmod(sum(round(len(rows) * visits) for rows, visits in self.sets), self._size)
        return full + (rest >= distributed.count())

    @property
    def _size(self) -> int:
        return self.config.batch_size * distributed.count()

    def batches(self, epoch: int, device: torch.device, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, without the first `skip`."""
        rng = np.random.default_rng([self.config.seed, epoch])
        for number, rows in enumerate(self._shuffled(rng)):
            views = rng.integers(self.features.data.shape[1], size=len(rows))
            if number >= skip:
                yield self._batch(rows.tolist(), views.tolist(), epoch, number, device)

    def _shuffled(self, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """A shuffle in which pictures with captions of like length stand together: less padding."""
        order = rng.permutation(np.concatenate([_visited(rows, visits, rng) for rows, visits in self.sets]))
        size = self._size
        pools = [order[i : i + 32 * size] for i in range(0, len(order), 32 * size)]
        order = np.concatenate([pool[np.argsort(self.longest[pool], kind="stable")] for pool in pools])
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        if len(batches[-1]) < distributed.count():
            *batches, before, last = batches
            batches.append(np.concatenate([before, last]))
        return [batches[i] for i in rng.permutation(len(batches))]

    def _batch(self, rows: list[int], views: list[int], epoch: int, number: int, device: torch.device) -> Batch:
        """This process's share of a batch, and what would be in it, whoever had it."""
        places = distributed.mine(range(len(rows)))
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


def memory_of(captioner: Captioner, inputs: Tensor, frozen_stages: int) -> Memory:
    """What the decoder needs, from what left the encoder's first `frozen_stages` stages."""
    if frozen_stages == 0:
        inputs = captioner.normalise(inputs).contiguous(memory_format=torch.channels_last)
    x = captioner.encoder.stages[frozen_stages:](inputs.float())
    return captioner.decoder.memory(as_regions(x))


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
    """What a caption of a training picture earns: CIDEr-D, and something for every object it names.

    references: for each picture its captions as token ids. documents: how many of them, from the first, document
    frequencies come from. object_weight: added for each object that some reference names, taken for each other.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        references: Sequence[Sequence[Sequence[int]]],
        documents: int,
        object_weight: float,
    ) -> None:
        self.vocabulary, self.object_weight = vocabulary, object_weight
        ids = [[vocabulary.counted([*caption, END]) for caption in mine] for mine in references]
        self.cider = CiderD(ids, ids[:documents])
        self.objects = Objects()
        self.named = [set().union(*map(self._objects, mine)) for mine in references] if object_weight else []

    def __call__(self, captions: Sequence[Sequence[int]], rows: Sequence[int]) -> NDArray[np.float64]:
        scores = self.cider.score([self.vocabulary.counted(ids) for ids in captions], rows)
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
    found = search(TorchStepper(captioner.decoder, memory), settings)
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


class WeightAverage:
    """Exponential moving average of a module's weights (Polyak averaging), with a warm-up of its decay.

    Of floating-point buffers too: statistics that batch norm learns belong to the weights of their time.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.parameters += [b for b in module.buffers() if b.is_floating_point()]
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, self.parameters, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights and the average; a second call undoes it."""
        for parameter, average in zip(self.parameters, self.shadow, strict=True):
            keep = parameter.clone()
            parameter.copy_(average)
            average.copy_(keep)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bf16 where the recipe asks for it, or leaves it to the device and that has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native(precision, device) == "bf16")


def training_mode(captioner: Captioner, frozen_stages: int, config: TrainConfig) -> None:
    """Dropout and the like where the recipe wants them."""
    captioner.train()
    if config.candidates == "beam":
        captioner.decoder.eval()  # candidates are scored by the decoder that found them: no dropout
    captioner.encoder.eval()  # batch-norm statistics stay those of ImageNet, even of stages that are trained
    if config.batch_norm == "learnt":
        captioner.encoder.stages[frozen_stages:].train()
    drop_paths(captioner.encoder.stages[frozen_stages:], config.drop_path)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float) -> float:
    """One step of the optimizer down the slope of a loss; returns the norm of the gradient before it was clipped.

    Raises `TrainingDiverged` for a loss or gradient that is not finite, before it touches the weights.
    """
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    distributed.average(p.grad for p in parameters if p.grad is not None)
    norm = float(nn.utils.clip_grad_norm_(parameters, clip, foreach=True))
    if not (math.isfinite(float(loss.detach())) and math.isfinite(norm)):
        raise TrainingDiverged(
            f"the loss is {float(loss.detach())}, its gradient's norm {norm}; lower train.learning_rate or train.clip, "
            "or try train.precision = 'fp32'"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Free-running validation: the captions and, by source data set, their CIDEr (percent)."""

    captions: list[list[str]]  # words, one caption a picture
    cider: dict[str, float]
    loss: float  # teacher-forced cross-entropy a word
    repeated: float  # share of captions that hold a bigram twice

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
    """Caption every picture by free-running search and score it without Java (`training.cider`)."""
    captioner.eval()
    device = next(captioner.parameters()).device

    def speak(rows: list[int], words: Tensor) -> tuple[Stepper, Tensor]:
        memory = memory_of(captioner, features.batch(rows, [0] * len(rows), device), features.stages)
        return TorchStepper(captioner.decoder, memory), likelihood_loss(captioner, memory, words, 0.0)

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
    """What `evaluate` finds, of whatever speaks.

    speak: (rows of `pictures`, the words (B, N, T + 1) said of them) -> a stepper over them, the loss of the words.
    """
    parts: list[tuple[int, list[list[str]], float]] = []
    for start in distributed.mine(range(0, len(pictures), 100)):
        rows = list(range(start, min(start + 100, len(pictures))))
        ids = [[vocabulary.encode(c) for c in pictures[r].captions] for r in rows]
        # Whole, however much of them is taught; but one without end would fill the memory with padding.
        words = padded([[mine[i % len(mine)] for i in range(config.captions_per_picture)] for mine in ids], LONGEST)
        with autocast(device, config.precision):
            stepper, loss = speak(rows, words.to(device))
            found = search(stepper, search_config)
        parts.append((start, [vocabulary.decode(mine[0].words) if mine else [] for mine in found], float(loss)))
    parts = sorted(part for each in distributed.gathered(parts) for part in each)
    captions = [caption for _, mine, _ in parts for caption in mine]
    references = [[words_of(c) for c in picture.captions] for picture in pictures]
    sources = [picture.source for picture in pictures]
    cider = {}
    for source in dict.fromkeys(sources):
        rows = [i for i, name in enumerate(sources) if name == source]
        scorer = CiderD([references[i] for i in rows])
        cider[source] = 100 * float(scorer.score([captions[i] for i in rows], range(len(rows))).mean())
    repeated = sum(repeats_bigram(words) for words in captions) / len(captions)
    loss_a_word = np.average([loss for _, _, loss in parts], weights=[len(mine) for _, mine, _ in parts])
    return Evaluation(captions, cider, float(loss_a_word), repeated)
