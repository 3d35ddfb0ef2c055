"""Captions of a split by the engine that serves, and their coco-caption scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.caption import Caption
from model.checkpoint import load_captioner
from model.config import SearchConfig
from model.runtime.engine import CaptionEngine
from training.data import DataError, Picture
from training.finishing import calibrate
from training.scoring import failures
from training.scoring.gallery import Entry
from training.scoring.metrics import Report, expected_calibration_error, score
from training.scoring.objects import ObjectReport, Objects, score_objects

log = logging.getLogger("training.evaluate")


@dataclass(frozen=True, slots=True)
class Result:
    """The captions of one data set under one search, and their scores."""

    search: SearchConfig
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


def caption_pictures(
    engine: CaptionEngine, pictures: Sequence[Picture], searches: Sequence[SearchConfig], batch_size: int = 32
) -> tuple[list[Picture], list[list[Caption]]]:
    """The pictures that could be decoded, and for each search a caption of each. A picture is encoded once."""
    sound: list[Picture] = []
    captions: list[list[Caption]] = [[] for _ in searches]

    def load(picture: Picture) -> NDArray[np.uint8] | None:
        try:
            return engine.preprocess(picture.open())
        except DataError as error:
            log.warning("skipped: %s", error)
            return None

    with ThreadPoolExecutor(2) as pool:
        for start in tqdm(range(0, len(pictures), batch_size), "captions", unit="batch", leave=False):
            batch = pictures[start : start + batch_size]
            loaded = [(p, pixels) for p, pixels in zip(batch, pool.map(load, batch), strict=True) if pixels is not None]
            if not loaded:
                continue
            sound += [picture for picture, _ in loaded]
            regions = engine.encode(np.stack([pixels for _, pixels in loaded]))
            for mine, search in zip(captions, searches, strict=True):
                mine += [ranked[0] for ranked in engine.generate(regions, search)]
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
    for search, mine in zip(searches, captions, strict=True):
        for source in dict.fromkeys(picture.source for picture in sound):
            pairs = [(p, c) for p, c in zip(sound, mine, strict=True) if p.source == source]
            said, references = [c.text for _, c in pairs], [p.captions for p, _ in pairs]
            counted = score_objects(said, references, objects)
            report = score(said, references)
            results.append(Result(search, source, [p for p, _ in pairs], [c for _, c in pairs], report, counted))
    return results


def calibration_error(folder: Path, pictures: Sequence[Picture], device: str) -> float:
    """Expected calibration error of the token probabilities, by teacher forcing on the references."""
    captioner = load_captioner(folder).to(device)
    outputs, targets = calibrate.teacher_force(captioner, pictures)
    return expected_calibration_error(*calibrate.confidence(captioner, outputs, targets, captioner.config.temperature))


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


def describe(search: SearchConfig) -> str:
    """A search in words."""
    block = f", no {search.block_ngram}-gram twice" if search.block_ngram else ""
    return (
        f"beam {search.beam_size}, length penalty {search.length_penalty:g}{block}, at most {search.max_length} words"
    )
