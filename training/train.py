"""Train a captioner: `python -m training.train --recipe R --data SET [SET ...]`."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from model.captioner import Captioner
from model.checkpoint import WEIGHTS, load_captioner, open_checkpoint, save_captioner, write_json
from model.config import ModelConfig, PreprocessConfig, from_dict
from model.decoder import Memory
from model.encoder import default_preprocess
from model.errors import CaptionModelError, ConfigError
from model.vocabulary import PAD, SPECIAL, Vocabulary
from training import coverage, distributed, engine, features
from training.config import Recipe, TrainConfig, find_recipe
from training.data import CaptionData, DataError, Picture, read
from training.pieces import build_pieces
from training.process import native, settle

log = logging.getLogger("training")


FEWEST = 10  # validation pictures: CIDEr weighs words by how rare they are among these, and of a single one says 0


@dataclass
class Progress:
    """Where a run stands; saved with the weights, so that a killed run goes on as if it had not been."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps of the present epoch done
    loss: float = 0.0  # summed over these steps
    figure: float = 0.0  # likewise: what is shown beside the loss
    gradient_norm: float = 0.0  # likewise
    best: float = -math.inf  # see `score_of`
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
    init: a checkpoint to start from in place of fresh weights; the recipe must have its sizes (see `inherited`).
    teachers: checkpoints whose mean probabilities `train.teacher_share` of the loss follows; their
        vocabulary and the encoder stages that are not trained here must be the captioner's own.
    """
    # --- what is trained, and is it what the folder holds?
    torch.manual_seed(recipe.train.seed)
    _check_sets(recipe, data)
    captioner = _captioner(recipe, data, init).to(device)
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
    made_from = _made_from(recipe, captioner, data, digests, init, teachers)
    state = run / "state.pt"
    saved = distributed.from_first(lambda: _saved(state, recipe, made_from))

    # --- pictures and captions
    def cached(split: str, views: int) -> features.Features:
        stages = features.before_head(captioner, frozen)
        return features.cached(captioner, stages, data.required(split), views, recipe.augment, cache, device,
                               config.precision, digests[split])  # fmt: skip

    train_set, val_set = cached("train", recipe.views), cached("val", 1)
    masters = _teachers(teachers, captioner, train_set.stages, config, device)
    source = engine.CaptionSource(train_set, captioner, config, recipe.augment, recipe.visits)
    _report(data, train_set, val_set, source, recipe)
    if not len(source):
        raise ConfigError("visits leaves no picture to train on")
    # A small set comes to min_steps by more epochs; patience is given in epochs of the recipe.
    epochs = max(config.epochs, math.ceil(config.min_steps / len(source)))
    patience = config.patience * epochs / config.epochs

    # --- weights
    optimizer = torch.optim.AdamW(_parameter_groups(captioner, frozen, config), betas=(0.9, 0.98), fused=True)
    average = engine.WeightAverage(captioner, config.average) if config.average else None
    progress = Progress()
    run.mkdir(parents=True, exist_ok=True)
    if saved:
        progress = _restore(saved, captioner, optimizer, average)
        log.info("resuming at epoch %d, step %d", progress.epoch + 1, progress.step)
    else:
        distributed.by_first(write_json)(run / "recipe.json", asdict(recipe))

    # --- loss
    if config.objective == "cider":
        # Mirrored pictures have references of their own, in the second half.
        references = [*source.ids, *source.mirrored_ids]
        reward = engine.Reward(captioner.vocabulary, references, len(source.ids), config.object_weight)

    def likelihood(memory: Memory, batch: engine.Batch) -> Tensor:
        with torch.no_grad():
            theirs = [(master, engine.memory_of(master, batch.inputs, train_set.stages)) for master in masters]
        share = config.scheduled_sampling * progress.epoch / max(epochs - 1, 1)
        return engine.likelihood_loss(
            captioner, memory, batch.words, config.label_smoothing, share, theirs, config.teacher_share
        )

    def loss_of(memory: Memory, batch: engine.Batch) -> tuple[Tensor, float]:
        """The loss and a figure to show beside it: perplexity, or the mean reward."""
        if config.objective == "likelihood":
            loss = likelihood(memory, batch)
            return loss * _weight(batch.words), math.exp(min(float(loss.detach()), 20))
        pictures = [row + len(source.ids) * flip for row, flip in zip(batch.rows, batch.flipped, strict=True)]
        seen = Memory(*(part.detach() for part in memory))
        find = engine.best if config.candidates == "beam" else engine.draw
        words = find(captioner, seen, config.samples, config.max_words)
        loss, figure = engine.cider_loss(captioner, memory, pictures, reward, words)
        loss = loss * _weight(words)
        if config.likelihood_weight:
            loss = loss + config.likelihood_weight * likelihood(memory, batch) * _weight(batch.words)
        return loss, figure

    # --- the loop
    writer = SummaryWriter(run / "tensorboard") if distributed.first() else None
    last_save = time.monotonic()
    while progress.epoch < epochs and progress.epoch - progress.best_epoch < patience:
        engine.training_mode(captioner, frozen, config)
        bar = tqdm(source.batches(progress.epoch, device, progress.step), f"epoch {progress.epoch + 1}/{epochs}",
                   total=len(source), initial=progress.step, mininterval=2 if sys.stderr.isatty() else 20, unit="step",
                   disable=not distributed.first())  # fmt: skip
        began, pictures = time.monotonic(), 0
        for batch in bar:
            factor = _schedule(progress.epoch * len(source) + progress.step, epochs * len(source), config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
            distributed.reseed(config.seed, progress.epoch, progress.step)
            with engine.autocast(device, config.precision):
                memory = engine.memory_of(captioner, batch.inputs, train_set.stages)
                loss, figure = loss_of(memory, batch)
            norm = engine.descend(loss, optimizer, config.clip)
            if config.batch_norm == "learnt":
                distributed.average(b for b in captioner.buffers() if b.is_floating_point())
            if average:
                average.update()
            progress.step, pictures = progress.step + 1, pictures + len(batch.rows)
            loss_now, figure = distributed.mean(float(loss.detach()), figure)
            progress.loss, progress.figure = progress.loss + loss_now, progress.figure + figure
            progress.gradient_norm += norm
            means = {"loss": progress.loss / progress.step, "figure": progress.figure / progress.step}
            bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()}, refresh=False)
            if time.monotonic() - last_save > config.save_every:
                _save(state, captioner, optimizer, average, progress, recipe, made_from)
                last_save = time.monotonic()
        speed = distributed.count() * pictures / (time.monotonic() - began)

        if average:
            average.swap()
        result = engine.evaluate(captioner, val_set, captioner.config.search, config)
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
        if writer:
            for key in ("train_loss", "figure", "learning_rate", "gradient_norm", "val_loss", "distinct"):
                writer.add_scalar(key, figures_now[key], progress.epoch)
            writer.add_scalar("pictures_per_second", speed, progress.epoch)
            for name, value in result.cider.items():
                writer.add_scalar(f"val_cider/{name}", value, progress.epoch)
        if score > progress.best:
            progress.best, progress.best_epoch = score, progress.epoch
            metrics = {"validation": figures_now, "recipe": asdict(recipe), "made_from": made_from}
            distributed.by_first(save_captioner)(captioner, run / "best", metrics)
        if average:
            average.swap()
        distributed.by_first(write_json)(run / "history.json", progress.history)
        _save(state, captioner, optimizer, average, progress, recipe, made_from)
        last_save = time.monotonic()
    if writer:
        writer.close()
    distributed.wait()
    best = best_epoch(progress.history)
    ciders = ", ".join(f"{name} {value:.1f}" for name, value in best["val_cider"].items())
    log.info("best epoch %d, validation CIDEr %s, loss %.3f, in %s", best["epoch"], ciders, best["val_loss"], run)
    return run / "best"


def _weight(words: Tensor) -> Tensor | float:
    """By what to multiply a mean loss over the words (B, N, T + 1) of this process: what it counts among all."""
    return distributed.weight((words[..., 1:] != PAD).sum())


def score_of(result: engine.Evaluation, pictures: Sequence[Picture], weights: Mapping[str, float]) -> float:
    """What the best epoch has most of: the sets' CIDEr by `weights`; of too few pictures for that, minus the loss."""
    return -result.loss if few(pictures, weights) else chosen_by(result.cider, weights)


def few(pictures: Sequence[Picture], weights: Mapping[str, float]) -> list[str]:
    """Those of the sets whose CIDEr would choose the best epoch that have fewer than `FEWEST` validation pictures."""
    counts = Counter(picture.source for picture in pictures)
    deciding = [name for name, weight in weights.items() if weight] or [pictures[0].source]
    return [name for name in deciding if counts[name] < FEWEST]


def chosen_by(cider: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The mean of the sets' CIDEr with these weights; without any the first set's."""
    if not weights:
        return next(iter(cider.values()))
    return sum(cider[name] * weight for name, weight in weights.items()) / sum(weights.values())


def best_epoch(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of a run's epochs, as history.json holds them, the one with the best score (`score_of`).

    Histories of older runs have none: there it is the first set's CIDEr.
    """

    def score(epoch: Mapping[str, Any]) -> float:
        return float(epoch["score"] if "score" in epoch else next(iter(epoch["val_cider"].values())))

    return max(history, key=score)


def inherited(init: Path) -> Recipe:
    """What a recipe leaves out where training starts from the checkpoint `init`: its sizes and kind of vocabulary.

    Name, dropout, search and temperature are the recipe's own choice, so their defaults stand.
    """
    checkpoint, model = open_checkpoint(init), ModelConfig()
    decoder = replace(checkpoint.config.decoder, dropout=model.decoder.dropout)
    model = replace(model, preprocess=checkpoint.config.preprocess, encoder=checkpoint.config.encoder, decoder=decoder)
    return Recipe(model=model, vocabulary=_kind(checkpoint.vocabulary))


def _kind(vocabulary: Vocabulary) -> Literal["words", "pieces"]:
    return "pieces" if vocabulary.in_pieces else "words"


def _captioner(recipe: Recipe, data: CaptionData, init: Path | None) -> Captioner:
    """The captioner to train, as `recipe` says; raises `ConfigError` where the checkpoint `init` is another."""
    captions = [caption for picture in data.split("train") for caption in picture.captions]
    model = recipe.model
    if (model.preprocess.mean, model.preprocess.std) == (PreprocessConfig().mean, PreprocessConfig().std):
        model = replace(model, preprocess=default_preprocess(model.encoder.name, model.preprocess.size))
    if init is None:
        if recipe.vocabulary == "pieces":
            vocabulary = build_pieces(captions, recipe.pieces, recipe.min_count)
        else:
            vocabulary = Vocabulary.build(captions, recipe.min_count)
        weights = None if recipe.encoder_weights == "none" else recipe.encoder_weights
        return Captioner(model, vocabulary, weights)
    captioner = load_captioner(init)
    sizes = replace(
        captioner.config, name=model.name, version=model.version, search=model.search, temperature=model.temperature,
        decoder=replace(captioner.config.decoder, dropout=model.decoder.dropout),
    )  # fmt: skip
    mine = {"vocabulary": recipe.vocabulary, **_flat(asdict(model), "model.")}
    theirs = {"vocabulary": _kind(captioner.vocabulary), **_flat(asdict(sizes), "model.")}
    if other := [f"{key} is {mine[key]!r}, there {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]:
        raise ConfigError(f"the recipe conflicts with the checkpoint {init}: {'; '.join(other)}; leave these keys out")
    if recipe.extend and captioner.vocabulary.in_pieces:
        raise ConfigError(f"extend adds words, and the vocabulary of {init} holds pieces of words")
    if recipe.extend:
        captioner = extended(captioner, Vocabulary.build(captions, recipe.min_count).words)
    captioner.config = sizes
    captioner.decoder.dropout.p = model.decoder.dropout
    return captioner


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
    source: engine.CaptionSource,
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


@torch.no_grad()
def extended(captioner: Captioner, words: Sequence[str]) -> Captioner:
    """`captioner` with those of `words` that it lacks at the end of its vocabulary; what it says stays the same.

    A new word begins with a random vector and, like a word never seen, hardly any probability.
    """
    known = captioner.vocabulary
    vocabulary = Vocabulary(tuple(dict.fromkeys((*known.words, *words))))
    larger = Captioner(captioner.config, vocabulary)
    state = larger.state_dict()
    for name, value in captioner.state_dict().items():
        if name == "decoder.output_bias":
            state[name].fill_(float(value[len(SPECIAL) :].min()))
        if value.ndim:
            state[name][: len(value)] = value  # only what has a row a word has become longer
    larger.load_state_dict(state)
    return larger.eval()


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


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, for a share of all steps or from 1 on so many; then a cosine down to a twentieth."""
    rise = warmup if warmup >= 1 else warmup * steps
    if step < rise:
        return min((step + 1) / rise, 1.0)
    done = min((step - rise) / max(steps - rise, 1), 1.0)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _made_from(
    recipe: Recipe,
    captioner: Captioner,
    data: CaptionData,
    digests: Mapping[str, Sequence[str]],
    init: Path | None,
    teachers: Sequence[Path],
) -> dict[str, str]:
    """Digests of what a run's result depends on besides its recipe."""

    def digest(content: Any) -> str:
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def checkpoint(folder: Path) -> str:
        opened = open_checkpoint(folder)
        return digest([dict(opened.digests)[WEIGHTS], asdict(opened.config), opened.vocabulary.fingerprint()])

    made_from = {"vocabulary": captioner.vocabulary.fingerprint()}
    for split, name in (("train", "training"), ("val", "validation")):
        pictures = data.split(split)
        made_from[f"{name} pictures"] = digest([[p.source for p in pictures], list(digests[split])])
        made_from[f"{name} captions"] = digest([p.captions for p in pictures])
    made_from["processes"] = str(distributed.count())
    made_from["init"] = checkpoint(init) if init else "none"
    made_from["teachers"] = ", ".join(map(checkpoint, teachers)) or "none"
    return made_from


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def _saved(path: Path, recipe: Recipe, made_from: Mapping[str, str]) -> dict[str, Any] | None:
    """What an earlier run saved, if any; raises `DataError` that says what differs where it was another run."""
    if not path.is_file():
        return None
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)  # no code runs
    theirs = {"processes": "1", **content.get("made_from", {})}
    other = [key for key in made_from if theirs.get(key) != made_from[key]]
    try:
        there = _flat(asdict(from_dict(Recipe, json.loads(content["recipe"]))))
    except ConfigError as error:
        raise DataError(f"{path.parent} holds a run of another version ({error}); take another --run folder") from error
    here = _flat(asdict(recipe))
    for key in sorted((here.keys() | there.keys()) - {"train.save_every"}):  # how often it saves changes no result
        if here.get(key) != there.get(key):
            other.append(f"{key} of the recipe ({there.get(key)!r} there, {here.get(key)!r} here)")
    if other:
        raise DataError(
            f"{path.parent} holds another run, with other {', '.join(other)}; take another --run folder or remove it"
        )
    return content


@distributed.by_first
def _save(
    path: Path,
    captioner: Captioner,
    optimizer: torch.optim.Optimizer,
    average: engine.WeightAverage | None,
    progress: Progress,
    recipe: Recipe,
    made_from: Mapping[str, str],
) -> None:
    device = next(captioner.parameters()).device
    content = {
        "model": captioner.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": {"shadow": average.shadow, "steps": average.steps} if average else None,
        "progress": asdict(progress),
        "recipe": json.dumps(asdict(recipe)),
        "made_from": dict(made_from),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def _restore(
    content: Mapping[str, Any],
    captioner: Captioner,
    optimizer: torch.optim.Optimizer,
    average: engine.WeightAverage | None,
) -> Progress:
    captioner.load_state_dict(content["model"])
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
    try:
        device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        device = distributed.join(torch.device(device))
        level = logging.INFO if distributed.first() else logging.ERROR
        logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        recipe = find_recipe(options.recipe, inherited(options.init) if options.init else None)
        if options.seed is not None:
            recipe = replace(recipe, train=replace(recipe.train, seed=options.seed))
        run = options.run or Path("runs") / recipe.name
        data = read(*options.data, check_pictures=options.check)
        if options.check:
            from training.check import report  # it imports this module

            print(report(recipe, data, options.cache, device, options.init, options.teacher))
            return 0
        train(recipe, data, run, options.cache, device, options.init, options.teacher)
        distributed.leave()
    except (CaptionModelError, DataError, engine.TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last save", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
