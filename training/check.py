"""What a run would learn from, and what it would take, without running it: `scripts/train --check`."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model.checkpoint import save_captioner
from model.vocabulary import UNKNOWN, Vocabulary, words_of
from training import initialisation
from training import loop as trainer
from training.config import Recipe
from training.data import CaptionData

_TRIED = 64  # training pictures that disk and time are measured on


@dataclass(frozen=True, slots=True)
class Need:
    """Measured on a few pictures and scaled up to all."""

    cache: int  # bytes that are kept of all pictures
    features: float  # seconds to compute them
    epoch: float  # seconds, its validation with it


def report(
    recipe: Recipe, data: CaptionData, cache: Path, device: torch.device, init: Path | None, teachers: Sequence[Path]
) -> str:
    """Parts, words, cut captions, what is left out, and disk and time of a run, as lines to read.

    Raises what `training.loop.train` raises where the run could not start.
    """
    train = data.required("train")
    captioner = initialisation.initial_captioner(recipe, data, init)
    lines = [*parts(data), *left_out(data)]
    for name, pictures in (("training", train), ("validation", data.required("val"))):
        captions = [caption for picture in pictures for caption in picture.captions]
        lines += [f"{name} captions: {line}" for line in words(captions, captioner.vocabulary, recipe.train.max_words)]
    need = measure(recipe, data, device, init, teachers)
    there = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    lines.append(f"disk: {need.cache / 1e9:.3g} GB of features in {cache}, if none are there yet; {free / 1e9:.3g} GB "
                 f"are free{', TOO LITTLE' if need.cache > free else ''}")  # fmt: skip
    minutes = (need.features + recipe.train.epochs * need.epoch) / 60
    lines.append(f"time: about {minutes:.3g} minutes on this {device.type}: {need.features / 60:.3g} for the features, "
                 f"then up to {recipe.train.epochs} epochs of {need.epoch / 60:.3g}")  # fmt: skip
    return "\n".join(lines)


def parts(data: CaptionData) -> list[str]:
    """A line a set: pictures and captions of each part."""
    counts: dict[str, Counter[str]] = {}
    captions: Counter[str] = Counter()
    for picture in data.pictures:
        counts.setdefault(picture.source, Counter())[picture.split] += 1
        captions[picture.source] += len(picture.captions)
    return [
        f"{source}: {mine['train']} training, {mine['val']} validation and {mine['test']} test pictures, "
        f"{captions[source]} captions"
        for source, mine in counts.items()
    ]


def left_out(data: CaptionData) -> list[str]:
    """A line a reason, with names."""
    return [
        f"left out: {count} with {reason}, such as {', '.join(map(repr, data.examples.get(reason, ()))) or '?'}"
        for reason, count in data.skipped.items()
        if count
    ] or ["left out: none"]


def words(captions: Sequence[str], vocabulary: Vocabulary, most: int) -> list[str]:
    """How far a vocabulary covers captions, and how many are longer than `most` tokens."""
    counts = Counter(word for caption in captions for word in words_of(caption))
    unknown = Counter({word: count for word, count in counts.items() if UNKNOWN in vocabulary.encode(word)})
    share = unknown.total() / max(counts.total(), 1)
    examples = f", most often {', '.join(word for word, _ in unknown.most_common(8))}" if unknown else ""
    tokens = "pieces" if vocabulary.in_pieces else "words"
    cut = [caption for caption in captions if len(vocabulary.encode(caption)) > most]
    example = f", such as {min(cut, key=len)!r}" if cut else ""
    return [
        f"{len(captions)}, of {len(counts)} different words; {share:.1%} of all words are unknown to the vocabulary of "
        f"{len(vocabulary)} {tokens}{examples}",
        f"{len(cut)} are longer than train.max_words ({most} {tokens}){example}",
    ]


def measure(
    recipe: Recipe, data: CaptionData, device: torch.device, init: Path | None, teachers: Sequence[Path]
) -> Need:
    """Run the recipe's start on every so many-th picture, in a folder that is removed again.

    A run with nothing cached, one with features cached, and one of two epochs: their differences are what
    features and an epoch cost.
    """
    every = max(len(data.split("train")) // _TRIED, 1)
    groups: dict[tuple[str, str], list[int]] = {}
    for place, picture in enumerate(data.pictures):
        groups.setdefault((picture.source, picture.split), []).append(place)
    places = sorted(place for group in groups.values() for place in group[::every])
    few = replace(data, pictures=tuple(data.pictures[place] for place in places))
    scale = len(data.split("train")) / len(few.split("train"))
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if init is None:  # the vocabulary of all captions costs more than that of a few
            captioner, init = initialisation.initial_captioner(recipe, data, None), folder / "init"
            save_captioner(captioner, init, {})
            recipe = replace(recipe, model=captioner.config)
        logging.disable(logging.WARNING)
        try:
            for run, epochs in (("cold", 1), ("warm", 1), ("two", 2)):
                tried = replace(recipe, train=replace(recipe.train, epochs=epochs))
                start = time.monotonic()
                trainer.train(tried, few, folder / run, folder / "cache", device, init, teachers)
                seconds.append(time.monotonic() - start)
        finally:
            logging.disable(logging.NOTSET)
        kept = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
    cold, warm, two = seconds
    return Need(round(kept * scale), max(cold - warm, 0) * scale, max(two - warm, 0) * scale)
