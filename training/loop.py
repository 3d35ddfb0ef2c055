"""The loop: a captioner is trained."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from model.captioner import Captioner
from model.checkpoint import save_captioner, write_json
from model.decoder import Memory
from model.errors import ConfigError
from model.vocabulary import Vocabulary
from training import batching, features, objectives, optimisation, validation
from training.checkpointing import Progress, provenance, read_state, restore_state, save_state
from training.config import Recipe
from training.data import CaptionData
from training.initialisation import initial_captioner, load_teachers
from training.language import coverage
from training.optimisation import learning_rate_factor, parameter_groups
from training.process import native
from training.validation import FEWEST, best_epoch, few, score_of

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
    recipe = _as_run(recipe, captioner, device)
    config = recipe.train
    frozen = len(captioner.encoder.stages) - recipe.train_stages
    if not 0 <= frozen <= len(captioner.encoder.stages):
        raise ConfigError(f"train_stages is {recipe.train_stages}, the encoder has {len(captioner.encoder.stages)}")
    digests = {split: features.contents(data.split(split)) for split in ("train", "val")}
    made_from = provenance(recipe, captioner, data, digests, init, teachers)
    state = run / "state.pt"
    saved = read_state(state, recipe, made_from)

    # --- pictures and captions
    def cached(split: str, views: int) -> features.Features:
        stages = features.before_head(captioner, frozen)
        return features.cached(captioner, stages, data.required(split), views, recipe.augment, cache, device,
                               config.precision, digests[split])  # fmt: skip

    train_set, val_set = cached("train", recipe.views), cached("val", 1)
    masters = load_teachers(teachers, captioner, train_set.stages, config, device)
    source = batching.CaptionSource(train_set, captioner, config, recipe.augment, recipe.visits)
    _report(data, train_set, val_set, source, recipe)
    if not len(source):
        raise ConfigError("visits leaves no picture to train on")
    # A small set comes to min_steps by more epochs; patience is given in epochs of the recipe.
    epochs = max(config.epochs, math.ceil(config.min_steps / len(source)))
    patience = config.patience * epochs / config.epochs

    # --- weights
    optimizer = torch.optim.AdamW(parameter_groups(captioner, frozen, config), betas=(0.9, 0.98), fused=True)
    average = optimisation.WeightAverage(captioner, config.average) if config.average else None
    progress = Progress()
    run.mkdir(parents=True, exist_ok=True)
    if saved:
        progress = restore_state(saved, captioner, optimizer, average)
        log.info("resuming at epoch %d, step %d", progress.epoch + 1, progress.step)
    else:
        write_json(run / "recipe.json", asdict(recipe))

    # --- loss
    if config.objective == "cider":
        # Mirrored pictures have references of their own, in the second half.
        references = [*source.ids, *source.mirrored_ids]
        reward = objectives.Reward(captioner.vocabulary, references, len(source.ids), config.object_weight)

    def likelihood(memory: Memory, batch: batching.Batch) -> Tensor:
        with torch.no_grad():
            theirs = [(master, objectives.memory_of(master, batch.inputs, train_set.stages)) for master in masters]
        share = config.scheduled_sampling * progress.epoch / max(epochs - 1, 1)
        return objectives.likelihood_loss(
            captioner, memory, batch.words, config.label_smoothing, share, theirs, config.teacher_share
        )

    def loss_of(memory: Memory, batch: batching.Batch) -> tuple[Tensor, float]:
        """The loss and a figure to show beside it: perplexity, or the mean reward."""
        if config.objective == "likelihood":
            loss = likelihood(memory, batch)
            return loss, math.exp(min(float(loss.detach()), 20))
        pictures = [row + len(source.ids) * flip for row, flip in zip(batch.rows, batch.flipped, strict=True)]
        seen = Memory(*(part.detach() for part in memory))
        find = objectives.best if config.candidates == "beam" else objectives.draw
        words = find(captioner, seen, config.samples, config.max_words)
        loss, figure = objectives.cider_loss(captioner, memory, pictures, reward, words)
        if config.likelihood_weight:
            loss = loss + config.likelihood_weight * likelihood(memory, batch)
        return loss, figure

    # --- the loop
    writer = SummaryWriter(run / "tensorboard")
    last_save = time.monotonic()
    while progress.epoch < epochs and progress.epoch - progress.best_epoch < patience:
        optimisation.training_mode(captioner, frozen, config)
        bar = tqdm(source.batches(progress.epoch, device, progress.step), f"epoch {progress.epoch + 1}/{epochs}",
                   total=len(source), initial=progress.step, mininterval=2 if sys.stderr.isatty() else 20, unit="step",
                   )  # fmt: skip
        began, pictures = time.monotonic(), 0
        for batch in bar:
            factor = learning_rate_factor(
                progress.epoch * len(source) + progress.step, epochs * len(source), config.warmup
            )
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
            with optimisation.autocast(device, config.precision):
                memory = objectives.memory_of(captioner, batch.inputs, train_set.stages)
                loss, figure = loss_of(memory, batch)
            norm = optimisation.descend(loss, optimizer, config.clip)
            if average:
                average.update()
            progress.step, pictures = progress.step + 1, pictures + len(batch.rows)
            progress.loss, progress.figure = progress.loss + float(loss.detach()), progress.figure + figure
            progress.gradient_norm += norm
            means = {"loss": progress.loss / progress.step, "figure": progress.figure / progress.step}
            bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()}, refresh=False)
            if time.monotonic() - last_save > config.save_every:
                save_state(state, captioner, optimizer, average, progress, recipe, made_from)
                last_save = time.monotonic()
        speed = pictures / (time.monotonic() - began)

        if average:
            average.swap()
        result = validation.evaluate(captioner, val_set, captioner.config.search, config)
        score = score_of(result, val_set.pictures, recipe.choose)
        figures_now = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss / progress.step,
            "figure": progress.figure / progress.step,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "gradient_norm": progress.gradient_norm / progress.step,
            **result.figures(),
            "score": score,
        }
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss, progress.figure, progress.gradient_norm = 0.0, 0.0, 0.0
        progress.history.append(figures_now)
        log.info("%s, %.1f pictures/s", json.dumps(figures_now), speed)
        for key in ("train_loss", "figure", "learning_rate", "gradient_norm", "val_loss", "distinct"):
            writer.add_scalar(key, figures_now[key], progress.epoch)
        writer.add_scalar("pictures_per_second", speed, progress.epoch)
        for name, value in result.cider.items():
            writer.add_scalar(f"val_cider/{name}", value, progress.epoch)
        if score > progress.best:
            progress.best, progress.best_epoch = score, progress.epoch
            metrics = {"validation": figures_now, "recipe": asdict(recipe), "made_from": made_from}
            save_captioner(captioner, run / "best", metrics)
        if average:
            average.swap()
        write_json(run / "history.json", progress.history)
        save_state(state, captioner, optimizer, average, progress, recipe, made_from)
        last_save = time.monotonic()
    writer.close()
    best = best_epoch(progress.history)
    ciders = ", ".join(f"{name} {value:.1f}" for name, value in best["val_cider"].items())
    log.info("best epoch %d, validation CIDEr %s, loss %.3f, in %s", best["epoch"], ciders, best["val_loss"], run)
    return run / "best"


def _as_run(recipe: Recipe, captioner: Captioner, device: torch.device) -> Recipe:
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
    if names := few(val_set.pictures, recipe.choose):
        log.warning("%s has fewer than %d validation pictures, too few for CIDEr: the epoch with the lowest validation "
                    "loss is the best", ", ".join(names), FEWEST)  # fmt: skip


def _of_new(known: Vocabulary, more: Vocabulary) -> dict[str, str]:
    """The capitals of those words of `more` that are not in `known`."""
    return {word: written for word, written in more.capitals.items() if word not in known.words}
