"""A model on the pictures of a split: its captions, by the engine that serves, and how good they are; and how sure it
is of the captions that people wrote, by teacher forcing. The one way of both after training; within it: `validation`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from model.caption import Caption
from model.captioner import Captioner
from model.config import SearchConfig
from model.preprocess import to_pixels
from model.runtime.engine import CaptionEngine, Regions
from model.vocabulary import PAD
from training.batching import padded
from training.data import DataError, Picture
from training.scoring import failures
from training.scoring.gallery import Entry
from training.scoring.metrics import Report, expected_calibration_error, score
from training.scoring.objects import ObjectReport, Objects, score_objects

log = logging.getLogger("training.evaluate")


@dataclass(frozen=True, slots=True)
class Result:
    """The captions of one data set under one search, and their scores."""

    search_config: SearchConfig
    source: str
    pictures: Sequence[Picture]
    captions: Sequence[Caption]
    report: Report
    objects: ObjectReport

    def facts(self) -> dict[str, Any]:
        """The figures by name, for the table and the JSON."""
        report = self.report
        return {
            "pictures": len(self.pictures),
            **{name: round(value, 2) for name, value in report.scores.items()},
            "objects_right": round(self.objects.precision, 2),
            "objects_found": round(self.objects.recall, 2),
            "intervals": {
                name: [round(end, 2) for end in ends]
                for name, ends in {**report.intervals, **self.objects.intervals()}.items()
            },
            "distinct_captions": report.distinct,
            "mean_length": round(report.mean_length, 2),
            "vocabulary_used": report.vocabulary,
            "repeated_bigrams": round(report.repeated_bigrams, 2),
        }


def decoded(
    pictures: Sequence[Picture], prepare: Callable[[Image.Image], NDArray[np.uint8]], batch_size: int
) -> Iterator[tuple[list[Picture], NDArray[np.uint8]]]:
    """Of each batch the pictures that can be decoded, and what `prepare` makes of them, (B, ...); others are logged."""

    def load(picture: Picture) -> NDArray[np.uint8] | None:
        try:
            return prepare(picture.open())
        except DataError as error:
            log.warning("skipped: %s", error)
            return None

    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            loaded = [(p, pixels) for p, pixels in zip(batch, pool.map(load, batch), strict=True) if pixels is not None]
            if loaded:
                yield [picture for picture, _ in loaded], np.stack([pixels for _, pixels in loaded])


def candidates_of(
    engine: CaptionEngine, pictures: Sequence[Picture], searches: Sequence[SearchConfig], batch_size: int = 32
) -> Iterator[tuple[list[Picture], Regions, list[list[list[Caption]]]]]:
    """Batch by batch the pictures that could be decoded, encoded once, and for each search all captions of each."""
    batches = decoded(pictures, engine.preprocess, batch_size)
    for sound, pixels in tqdm(batches, "captions", math.ceil(len(pictures) / batch_size), unit="batch", leave=False):
        regions = engine.encode(pixels)
        yield sound, regions, [engine.generate(regions, search_config) for search_config in searches]


def caption_pictures(
    engine: CaptionEngine, pictures: Sequence[Picture], searches: Sequence[SearchConfig], batch_size: int = 32
) -> tuple[list[Picture], list[list[Caption]]]:
    """The pictures that could be decoded, and for each search a caption of each."""
    sound: list[Picture] = []
    captions: list[list[Caption]] = [[] for _ in searches]
    for some, _, found in candidates_of(engine, pictures, searches, batch_size):
        sound += some
        for mine, ranked in zip(captions, found, strict=True):
            mine += [best for best, *_ in ranked]
    return sound, captions


def evaluate(
    engine: CaptionEngine,
    pictures: Sequence[Picture],
    searches: Sequence[SearchConfig],
    objects: Objects | None = None,
) -> list[Result]:
    """Caption the pictures under each search and score each data set on its own (CIDEr depends on the set).

    objects: the words whose things are counted; English ones for COCO's kinds of things where not given.
    """
    objects = objects or Objects()
    sound, captions = caption_pictures(engine, pictures, searches)
    if not sound:
        raise DataError("not one picture could be decoded")
    results = []
    for search_config, mine in zip(searches, captions, strict=True):
        for source in dict.fromkeys(picture.source for picture in sound):
            pairs = [(p, c) for p, c in zip(sound, mine, strict=True) if p.source == source]
            said, references = [c.text for _, c in pairs], [p.captions for p, _ in pairs]
            counted = score_objects(said, references, objects)
            report = score(said, references)
            results.append(Result(search_config, source, [p for p, _ in pairs], [c for _, c in pairs], report, counted))
    return results


@torch.inference_mode()
def teacher_force(captioner: Captioner, pictures: Sequence[Picture], batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """What the decoder outputs before each reference word, (N, E), and those words' ids, (N,).

    All references of all pictures; ends included. Words that the vocabulary lacks are `UNKNOWN`.
    Pictures that cannot be decoded are left out and counted in a warning; `DataError` where none can.
    """
    captioner.eval()
    device = next(captioner.parameters()).device
    outputs, targets, sound = [], [], 0
    batches = decoded(pictures, lambda image: to_pixels(image, captioner.config.preprocess), batch_size)
    for some, pixels in tqdm(
        batches, "teacher forcing", math.ceil(len(pictures) / batch_size), unit="batch", leave=False
    ):
        sound += len(some)
        ids = [[captioner.vocabulary.encode(c) for c in picture.captions] for picture in some]
        most = max(map(len, ids))
        words = padded([[*mine, *[[]] * (most - len(mine))] for mine in ids])
        for mine, real in zip(words, ids, strict=True):
            mine[len(real) :] = PAD  # the filling of pictures with fewer captions
        words = words.to(device)
        said = words[..., 1:] != PAD
        memory = captioner.encode(torch.from_numpy(pixels).to(device))
        outputs.append(captioner.decoder.outputs(memory, words[..., :-1])[said])
        targets.append(words[..., 1:][said])
    if sound < len(pictures):
        log.warning("%d of %d pictures cannot be decoded and were skipped", len(pictures) - sound, len(pictures))
    if not outputs:
        raise DataError("not one picture could be decoded")
    return torch.cat(outputs), torch.cat(targets)


@torch.inference_mode()
def confidence(
    captioner: Captioner, outputs: Tensor, targets: Tensor, temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The probability of the word thought most likely, (N,), and whether it is the reference's, (N,)."""
    probabilities, right = [], []
    for some, wanted in zip(outputs.split(4096), targets.split(4096), strict=True):
        log_probability, word = captioner.decoder.log_probabilities(
            captioner.decoder.logits(some), temperature
        ).max(-1)  # fmt: skip
        probabilities.append(log_probability.exp().float().cpu().numpy())
        right.append((word == wanted).cpu().numpy())
    return np.concatenate(probabilities), np.concatenate(right)


def calibration_error(captioner: Captioner, forced: tuple[Tensor, Tensor]) -> float:
    """Expected calibration error of the token probabilities, of what `teacher_force` gives."""
    return expected_calibration_error(*confidence(captioner, *forced, captioner.config.temperature))


def entries_of(
    results: Sequence[Result], lowest: int = 0, judged: Mapping[str, failures.Failure] | None = None
) -> list[Entry]:
    """The gallery's entries: all pictures, or the `lowest` ones by CIDEr with the kind of their failure."""
    entries = []
    for result in results:
        report = result.report
        verbs = failures.verbs_of(words for texts in report.reference_tokens for words in texts)
        rows = range(len(result.pictures))
        if lowest:
            rows = np.argsort(report.per_picture["CIDEr"], kind="stable")[:lowest].tolist()
        for row in rows:
            picture, caption = result.pictures[row], result.captions[row]
            kinds: Sequence[failures.Failure] = ()
            if lowest and judged and picture.name in judged:
                kinds = [judged[picture.name]]
            elif lowest:
                kinds = failures.guess(report.tokens[row], report.reference_tokens[row], verbs)
            cider = float(report.per_picture["CIDEr"][row])
            entries.append(Entry(picture, caption.text, caption.confidence, cider, kinds))
    return sorted(entries, key=lambda entry: entry.cider)[:lowest] if lowest else entries


def describe(config: SearchConfig) -> str:
    """A search in words."""
    block = f", no {config.block_ngram}-gram twice" if config.block_ngram else ""
    return (
        f"beam {config.beam_size}, length penalty {config.length_penalty:g}{block}, at most {config.max_length} words"
    )
