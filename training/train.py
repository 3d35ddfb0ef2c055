"""Train a captioner: `python -m training.train --recipe R --data SET [SET ...]`."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from model.captioner import Captioner
from model.checkpoint import load_captioner, save_captioner, write_json
from model.config import from_dict
from model.decoder import Memory
from model.encoder import default_preprocess
from model.errors import CaptionModelError, ConfigError
from model.vocabulary import END, Vocabulary
from training import engine, features
from training.cider import CiderD
from training.config import Recipe, TrainConfig, find_recipe
from training.data import CaptionData, DataError, read
from training.pieces import build_pieces
from training.process import settle

log = logging.getLogger("training")


@dataclass
class Progress:
    """Where a run stands; saved with the weights, so that a killed run goes on as if it had not been."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps of the present epoch done
    loss: float = 0.0  # summed over these steps
    figure: float = 0.0  # likewise: what is shown beside the loss
    best: float = -1.0  # validation CIDEr, percent
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


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
    init: a checkpoint to start from in place of fresh weights; its vocabulary and model settings win.
    teachers: checkpoints whose mean probabilities `train.teacher_share` of the loss follows; their
        vocabulary and the encoder stages that are not trained here must be the captioner's own.
    """
    config = recipe.train
    torch.manual_seed(config.seed)
    run.mkdir(parents=True, exist_ok=True)
    captioner = _captioner(recipe, data, init).to(device)
    captioner.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen = len(captioner.encoder.stages) - recipe.train_stages
    if not 0 <= frozen <= len(captioner.encoder.stages):
        raise ConfigError(f"train_stages is {recipe.train_stages}, the encoder has {len(captioner.encoder.stages)}")

    def cached(split: str, views: int) -> features.Features:
        pictures = data.required(split)
        return features.cached(captioner, frozen, pictures, views, recipe.augment, cache, device, config.precision)

    train_set, val_set = cached("train", recipe.views), cached("val", 1)
    skipped = {**data.skipped, "undecodable": len(train_set.broken) + len(val_set.broken)}
    log.info("%d training and %d validation pictures; skipped: %s", *map(len, (train_set.pictures, val_set.pictures)),
             ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count) or "none")  # fmt: skip
    source = engine.CaptionSource(train_set, captioner, config, recipe.augment)

    groups = _parameter_groups(captioner, frozen, config)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    average = engine.WeightAverage(captioner, config.average) if config.average else None
    progress = Progress()
    state = run / "state.pt"
    if state.is_file():
        progress = _restore(state, captioner, optimizer, average, recipe)
        log.info("resuming at epoch %d, step %d", progress.epoch + 1, progress.step)
    else:
        write_json(run / "recipe.json", asdict(recipe))

    if config.objective == "cider":
        # Mirrored pictures have references of their own, in the second half.
        counted = captioner.vocabulary.counted
        ids = [[counted([*caption, END]) for caption in mine] for mine in (*source.ids, *source.mirrored_ids)]
        reward = CiderD(ids, ids[: len(source.ids)])  # document frequencies: of the training pictures only

    masters = _teachers(teachers, captioner, frozen, config, device)

    def likelihood(memory: Memory, batch: engine.Batch) -> Tensor:
        with torch.no_grad():
            theirs = [(master, engine.memory_of(master, batch.inputs, frozen)) for master in masters]
        share = config.scheduled_sampling * progress.epoch / max(config.epochs - 1, 1)
        return engine.likelihood_loss(
            captioner, memory, batch.words, config.label_smoothing, share, theirs, config.teacher_share
        )

    def loss_of(memory: Memory, batch: engine.Batch) -> tuple[Tensor, float]:
        if config.objective == "likelihood":
            loss = likelihood(memory, batch)
            return loss, math.exp(min(float(loss.detach()), 20))
        pictures = [row + len(source.ids) * flip for row, flip in zip(batch.rows, batch.flipped, strict=True)]
        loss, figure = engine.cider_loss(captioner, memory, pictures, reward, config.samples, config.max_words)
        if config.likelihood_weight:
            loss = loss + config.likelihood_weight * likelihood(memory, batch)
        return loss, figure

    def learning_rates() -> list[float]:
        factor = _schedule(progress.epoch * len(source) + progress.step, config.epochs * len(source), config.warmup)
        return [group["peak"] * factor for group in groups]

    writer = SummaryWriter(run / "tensorboard")
    saved = time.monotonic()
    while progress.epoch < config.epochs and progress.epoch - progress.best_epoch < config.patience:
        bar = tqdm(total=len(source), initial=progress.step, desc=f"epoch {progress.epoch + 1}/{config.epochs}",
                   mininterval=2 if sys.stderr.isatty() else 20, unit="step")  # fmt: skip

        def after_step(loss: float, figure: float, seconds: float, bar: tqdm[NoReturn] = bar) -> None:
            nonlocal saved
            progress.step += 1
            progress.loss, progress.figure = progress.loss + loss, progress.figure + figure
            bar.update()
            means = {"loss": progress.loss / progress.step, "figure": progress.figure / progress.step}
            bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()}, refresh=False)
            if time.monotonic() - saved > config.save_every:
                _save(state, captioner, optimizer, average, progress, recipe)
                saved = time.monotonic()

        engine.train_one_epoch(
            captioner, frozen, source.batches(progress.epoch, device, progress.step), loss_of, optimizer,
            learning_rates, average, config, after_step,
        )  # fmt: skip
        bar.close()
        if average:
            average.swap()
        result = engine.evaluate(captioner, val_set, frozen, captioner.config.search, config)
        cider = next(iter(result.cider.values()))  # the first data set named decides
        figures_now = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss / progress.step,
            "figure": progress.figure / progress.step,
            **result.figures(),
        }
        progress.epoch, progress.step, progress.loss, progress.figure = progress.epoch + 1, 0, 0.0, 0.0
        progress.history.append(figures_now)
        log.info("%s", json.dumps(figures_now))
        for key in ("train_loss", "figure", "val_loss", "distinct"):
            writer.add_scalar(key, figures_now[key], progress.epoch)
        for name, value in result.cider.items():
            writer.add_scalar(f"val_cider/{name}", value, progress.epoch)
        if cider > progress.best:
            progress.best, progress.best_epoch = cider, progress.epoch
            save_captioner(captioner, run / "best", {"validation": figures_now, "recipe": asdict(recipe)})
        if average:
            average.swap()
        write_json(run / "history.json", progress.history)
        _save(state, captioner, optimizer, average, progress, recipe)
        saved = time.monotonic()
    writer.close()
    log.info("best validation CIDEr %.1f, of epoch %d, in %s", progress.best, progress.best_epoch, run / "best")
    return run / "best"


def best_epoch(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of a run's epochs, as history.json holds them, the one with the best CIDEr on the first data set."""
    return max(history, key=lambda epoch: next(iter(epoch["val_cider"].values())))


def _captioner(recipe: Recipe, data: CaptionData, init: Path | None) -> Captioner:
    if init is not None:
        captioner = load_captioner(init)
        # Sizes come with the weights; what the recipe may still choose is dropout and the search.
        model = recipe.model
        captioner.config = replace(
            captioner.config, name=model.name, version=model.version, search=model.search, temperature=model.temperature
        )
        captioner.decoder.dropout.p = model.decoder.dropout
        return captioner
    captions = [caption for picture in data.split("train") for caption in picture.captions]
    if recipe.vocabulary == "pieces":
        vocabulary = build_pieces(captions, recipe.pieces, recipe.min_count)
    else:
        vocabulary = Vocabulary.build(captions, recipe.min_count)
    weights = None if recipe.encoder_weights == "none" else recipe.encoder_weights
    preprocess = default_preprocess(recipe.model.encoder.name, recipe.model.preprocess.size)
    return Captioner(replace(recipe.model, preprocess=preprocess), vocabulary, weights)


def _teachers(
    folders: Sequence[Path], captioner: Captioner, frozen: int, config: TrainConfig, device: torch.device
) -> list[Captioner]:
    """The captioners to learn from, ready to run; `DataError` for one that cannot be fed what is cached here."""
    if bool(folders) != (config.teacher_share > 0):
        raise ConfigError("teachers (--teacher) and train.teacher_share above 0 come together or not at all")
    teachers = [load_captioner(folder).to(device).eval().requires_grad_(False) for folder in folders]
    for folder, teacher in zip(folders, teachers, strict=True):
        if teacher.vocabulary.words != captioner.vocabulary.words:
            raise DataError(f"the teacher {folder} has another vocabulary")
        if teacher.config.preprocess != captioner.config.preprocess:
            raise DataError(f"the teacher {folder} takes other pixels: {teacher.config.preprocess}")
        if not _begin_alike(captioner, teacher, frozen):
            raise DataError(f"the first {frozen} encoder stages of the teacher {folder} are others; train more stages")
        teacher.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teachers


@torch.no_grad()
def _begin_alike(captioner: Captioner, other: Captioner, stages: int) -> bool:
    """Whether the first encoder stages of both give the same, up to float16's rounding.

    Their numbers may differ: a release folds batch norm's scales into the weights (`model.encoder.fold_norms`).
    """
    if stages == 0:
        return True
    if captioner.config.encoder != other.config.encoder:
        return False
    pixels = torch.randint(256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    x = captioner.normalise(pixels.to(captioner.mean.device))
    mine, theirs = (each.encoder.stages[:stages].eval()(x) for each in (captioner, other))
    return float((mine - theirs).abs().max()) <= 0.02 * float(mine.abs().max())


def _parameter_groups(captioner: Captioner, frozen: int, config: TrainConfig) -> list[dict[str, Any]]:
    """Decoder, then the trained encoder stages, last first and ever slower; vectors without weight decay."""
    captioner.requires_grad_(False)
    parts: list[tuple[torch.nn.Module, float]] = [(captioner.decoder, config.learning_rate)]
    for depth, stage in enumerate(reversed(list(captioner.encoder.stages.children())[frozen:])):
        parts.append((stage, config.encoder_learning_rate * config.encoder_decay**depth))
    groups: list[dict[str, Any]] = []
    for module, peak in parts:
        module.requires_grad_(True)
        matrices = [p for p in module.parameters() if p.ndim > 1]
        vectors = [p for p in module.parameters() if p.ndim <= 1]
        groups.append({"params": matrices, "peak": peak, "lr": peak, "weight_decay": config.weight_decay})
        groups.append({"params": vectors, "peak": peak, "lr": peak, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _save(
    path: Path,
    captioner: Captioner,
    optimizer: torch.optim.Optimizer,
    average: engine.WeightAverage | None,
    progress: Progress,
    recipe: Recipe,
) -> None:
    device = next(captioner.parameters()).device
    content = {
        "model": captioner.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": {"shadow": average.shadow, "steps": average.steps} if average else None,
        "progress": asdict(progress),
        "recipe": json.dumps(asdict(recipe)),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def _restore(
    path: Path,
    captioner: Captioner,
    optimizer: torch.optim.Optimizer,
    average: engine.WeightAverage | None,
    recipe: Recipe,
) -> Progress:
    content = torch.load(path, map_location="cpu", weights_only=True)  # tensors and plain values: no code runs
    if from_dict(Recipe, json.loads(content["recipe"])) != recipe:
        raise DataError(f"{path.parent} holds a run of another recipe; take another --run folder or remove it")
    try:
        captioner.load_state_dict(content["model"])
    except RuntimeError as error:
        raise DataError(f"{path.parent} holds a run on other data; take another --run folder or remove it") from error
    optimizer.load_state_dict(content["optimizer"])
    if average and content["average"]:
        average.steps = content["average"]["steps"]
        for mine, saved in zip(average.shadow, content["average"]["shadow"], strict=True):
            mine.copy_(saved)
    torch.set_rng_state(content["rng"])
    if content["cuda_rng"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["cuda_rng"])
    return Progress(**content["progress"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/train", description="Train a captioner.")
    parser.add_argument("--recipe", required=True, help="a TOML file, or the name of one in training/recipes")
    parser.add_argument("--data", required=True, nargs="+", help="caption sets, the first decides; PATH[:val=N,seed=S]")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/<recipe>); resumes what lies there")
    parser.add_argument("--init", type=Path, help="checkpoint folder to start from")
    parser.add_argument("--teacher", type=Path, nargs="+", default=[], help="checkpoints to learn from as an ensemble")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where features are kept (default: cache)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, help="in place of the recipe's train.seed")
    parser.add_argument("--check", action="store_true", help="say what the data and the run would be; train nothing")
    options = parser.parse_args(arguments)
    settle()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        recipe = find_recipe(options.recipe)
        if options.seed is not None:
            recipe = replace(recipe, train=replace(recipe.train, seed=options.seed))
        device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        run = options.run or Path("runs") / recipe.name
        data = read(*options.data, check_pictures=options.check)
        if options.check:
            from training.check import report  # it imports this module

            print(report(recipe, data, options.cache, torch.device(device), options.init, options.teacher))
            return 0
        train(recipe, data, run, options.cache, torch.device(device), options.init, options.teacher)
    except (CaptionModelError, DataError, engine.TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last save", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
