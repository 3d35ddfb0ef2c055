"""The loop: a captioner is trained."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from model.captioner import Captioner
from model.checkpoint import save_captioner, write_json
from model.errors import ConfigError
from training import batching, distributed, features, objectives, optimisation, validation
from training.checkpointing import STATE, Progress, provenance, read_state, restore_state, save_state
from training.config import Recipe
from training.data import CaptionData
from training.initialisation import initial_captioner, load_teachers
from training.language import coverage
from training.optimisation import learning_rate_factor, parameter_groups
from training.process import native
from training.validation import FEWEST, best_epoch, score_of, with_few_pictures

log = logging.getLogger("training")


def train(
    recipe: Recipe,
    data: CaptionData,
    run: Path,
    cache: Path,
    device: torch.device,
    init: Path | None = None,
    teachers: Sequence[Path] = (),
) -> Path:
    """Run `recipe` on `data`; everything goes into the folder `run`, the best checkpoint into `run/best`.

    A run that was interrupted goes on from its last save, with the result it would have had.
    init: a checkpoint to start from in place of fresh weights; the recipe must have its sizes (see `inherited`).
    teachers: checkpoints whose mean probabilities `train.teacher_share` of the loss follows; their
        vocabulary and the encoder stages that are not trained here must be the captioner's own.
    """
    # --- what is trained, and is it what the folder holds?
    torch.manual_seed(recipe.train.seed)
    _check_sets(recipe, data)
    captioner = initial_captioner(recipe, data, init).to(device)
    captions = [caption for picture in data.split("train") for caption in picture.captions]
    for warning in coverage.check(captioner.vocabulary, captions, captioner.config.search.block_ngram):
        log.warning("%s", warning)
    captioner.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = as_run(recipe, captioner, device)
    config = recipe.train
    frozen = len(captioner.encoder.stages) - recipe.train_stages
    if not 0 <= frozen <= len(captioner.encoder.stages):
        raise ConfigError(f"train_stages is {recipe.train_stages}, the encoder has {len(captioner.encoder.stages)}")
    digests = {split: features.contents(data.split(split)) for split in ("train", "val")}
    made_from = provenance(recipe, captioner, data, digests, init, teachers)
    saved = distributed.broadcast(lambda: read_state(run / STATE, recipe, made_from))

    # --- pictures and captions
    def cached(split: str, views: int) -> features.Features:
        stages = features.before_head(captioner, frozen)
        return features.cached(captioner, stages, data.required(split), views, recipe.augment, cache, device,
                               config.precision, digests[split])  # fmt: skip

    train_set, val_set = cached("train", recipe.views), cached("val", 1)
    source = batching.CaptionSource(train_set, captioner, config, recipe.augment, recipe.visits)
    _report(data, train_set, val_set, source, recipe)
    if not len(source):
        raise ConfigError("visits leaves no picture to train on")
    objective = objectives.Objective(
        captioner, source, config, load_teachers(teachers, captioner, train_set.stages, config, device)
    )

    def judge() -> tuple[dict[str, Any], float]:
        result = validation.evaluate(captioner, val_set, captioner.config.search, config)
        return result.figures(), score_of(result, val_set.pictures, recipe.choose)

    groups = parameter_groups(captioner, frozen, config)
    return fit(recipe, captioner, groups, captioner, source, objective, judge, run, device, saved, made_from)


class Source(Protocol):
    """Batches to learn from, the same again for a seed and an epoch."""

    def __len__(self) -> int:
        """How many an epoch has."""

    def batches(self, epoch: int, device: torch.device, skip: int = 0) -> Iterator[batching.Batch]:
        """The batches of an epoch, without the first `skip`."""


class Objective(Protocol):
    """What a step goes down, and what to show beside it."""

    metric: str  # the name of what is shown

    def __call__(self, batch: batching.Batch, own_share: float) -> tuple[Tensor, float]:
        """The loss of a batch, `own_share` of whose words are the model's own guesses, and the metric."""


def fit(
    recipe: Recipe,
    trained: nn.Module,
    groups: list[dict[str, Any]],
    captioner: Captioner,
    source: Source,
    objective: Objective,
    judge: Callable[[], tuple[dict[str, Any], float]],
    run: Path,
    device: torch.device,
    saved: dict[str, Any] | None,
    made_from: Mapping[str, str],
) -> Path:
    """Take steps down `objective` until the epochs are over or none gets better; the best one's checkpoint.

    trained: the captioner, or what holds it and what it needs in training alone; groups are its parameters, as the
    optimizer takes them. judge: what the history keeps of an epoch, and the score that the best one has most of.
    saved: what `read_state` found.
    """
    # A small set comes to min_steps by more epochs; patience is given in epochs of the recipe.
    config = recipe.train
    epochs = max(config.epochs, math.ceil(config.min_steps / len(source)))
    patience = config.patience * epochs / config.epochs

    # --- weights
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    average = optimisation.WeightAverage(trained, config.average) if config.average else None
    progress = restore_state(saved, trained, optimizer, average) if saved else Progress()
    run.mkdir(parents=True, exist_ok=True)
    if saved:
        log.info("resuming at epoch %d, step %d", progress.epoch + 1, progress.step)
    else:
        distributed.on_main(write_json)(run / "recipe.json", asdict(recipe))

    def save() -> None:
        save_state(run / STATE, trained, optimizer, average, progress, recipe, made_from)

    # --- the loop
    writer = SummaryWriter(run / "tensorboard") if distributed.is_main() else None
    while progress.epoch < epochs and progress.epoch - progress.best_epoch < patience:
        speed = learn(recipe, captioner, source, objective, optimizer, average, progress, epochs, device, save)
        if average:
            average.swap()
        figures, score = judge()
        record = progress.end_epoch(objective.metric, optimizer.param_groups[0]["lr"], {**figures, "score": score})
        if writer:
            _log_epoch(writer, objective.metric, record, speed)
        if score > progress.best:
            progress.best, progress.best_epoch = score, progress.epoch
            metrics = {"validation": record, "recipe": asdict(recipe), "made_from": made_from}
            distributed.on_main(save_captioner)(captioner, run / "best", metrics)
        if average:
            average.swap()
        distributed.on_main(write_json)(run / "history.json", progress.history)
        save()
    if writer:
        writer.close()
    distributed.barrier()
    _log_best(progress, run)
    return run / "best"


def learn(
    recipe: Recipe,
    captioner: Captioner,
    source: Source,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    average: optimisation.WeightAverage | None,
    progress: Progress,
    epochs: int,
    device: torch.device,
    save: Callable[[], None],
) -> float:
    """Take the steps that are left of the present one of `epochs`; returns how many rows a second were learnt from.

    save: where the run stands, called every `train.save_every` seconds.
    """
    config, frozen = recipe.train, len(captioner.encoder.stages) - recipe.train_stages
    optimisation.training_mode(captioner, frozen, config)
    bar = tqdm(source.batches(progress.epoch, device, progress.step), f"epoch {progress.epoch + 1}/{epochs}",
               total=len(source), initial=progress.step, mininterval=2 if sys.stderr.isatty() else 20, unit="step",
               disable=not distributed.is_main())  # fmt: skip
    began, learnt = time.monotonic(), 0
    last_save = began
    own_share = config.scheduled_sampling * progress.epoch / max(epochs - 1, 1)
    for batch in bar:
        done = progress.epoch * len(source) + progress.step
        factor = learning_rate_factor(done, epochs * len(source), config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        distributed.reseed(config.seed, progress.epoch, progress.step)
        with optimisation.autocast(device, config.precision):
            loss, metric = objective(batch, own_share)
        norm = optimisation.descend(loss, optimizer, config.clip)
        if config.batch_norm == "learnt":
            distributed.average(b for b in captioner.buffers() if b.is_floating_point())
        if average:
            average.update()
        learnt += len(batch.rows)
        mean_loss, mean_metric = distributed.mean(float(loss.detach()), metric)
        progress.end_step(mean_loss, mean_metric, norm)
        bar.set_postfix({name: f"{mean:.4f}" for name, mean in progress.means(objective.metric).items()}, refresh=False)
        if time.monotonic() - last_save > config.save_every:
            save()
            last_save = time.monotonic()
    return distributed.world_size() * learnt / (time.monotonic() - began)


def _log_epoch(writer: SummaryWriter, metric: str, record: Mapping[str, Any], speed: float) -> None:
    """An epoch's record as a line and as points of TensorBoard's curves. speed: pictures a second, or sentences."""
    log.info("%s, %.1f a second", json.dumps(record), speed)
    for key in ("train_loss", metric, "learning_rate", "gradient_norm", "val_loss", "distinct"):
        if key in record:
            writer.add_scalar(key, record[key], record["epoch"])
    writer.add_scalar("learnt_per_second", speed, record["epoch"])
    for name, value in record.get("val_cider", {}).items():
        writer.add_scalar(f"val_cider/{name}", value, record["epoch"])


def _log_best(progress: Progress, run: Path) -> None:
    best = best_epoch(progress.history)
    ciders = "".join(f", CIDEr {name} {value:.1f}" for name, value in best.get("val_cider", {}).items())
    log.info("best epoch %d, validation loss %.3f%s, in %s", best["epoch"], best["val_loss"], ciders, run)


def as_run(recipe: Recipe, captioner: Captioner, device: torch.device) -> Recipe:
    """The recipe with what was left to the encoder and to the device put in: the record of what ran."""
    config = replace(recipe.train, precision=native(recipe.train.precision, device))
    return replace(recipe, model=captioner.config, train=config)


def _check_sets(recipe: Recipe, data: CaptionData) -> None:
    for split in ("train", "val"):
        data.required(split)
    for key, named, split in (("visits", recipe.visits, "train"), ("choose", recipe.choose, "val")):
        there = dict.fromkeys(picture.source for picture in data.split(split))
        if missing := named.keys() - there.keys():
            raise ConfigError(
                f"{key} names {', '.join(sorted(missing))}; the sets with {split} pictures are: {', '.join(there)}"
            )


def _report(
    data: CaptionData,
    train_set: features.Features,
    val_set: features.Features,
    source: batching.CaptionSource,
    recipe: Recipe,
) -> None:
    """Say before training what is learnt from, and what is not as one may think."""
    skipped = {**data.skipped, "undecodable": len(train_set.broken) + len(val_set.broken)}
    log.info("%d training and %d validation pictures; skipped: %s", *map(len, (train_set.pictures, val_set.pictures)),
             ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count) or "none")  # fmt: skip
    most, lengths = recipe.train.max_words, [len(ids) for mine in source.ids for ids in mine]
    if cut := sum(length > most for length in lengths):
        log.warning("%d of %d captions are longer than train.max_words (%d), and taught only so far, without an end",
                    cut, len(lengths), most)  # fmt: skip
    if names := with_few_pictures(val_set.pictures, recipe.choose):
        log.warning("%s has fewer than %d validation pictures, too few for CIDEr: the epoch with the lowest validation "
                    "loss is the best", ", ".join(names), FEWEST)  # fmt: skip
