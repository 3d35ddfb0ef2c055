"""Score a checkpoint on a split: `python -m training.evaluate --model FOLDER --data SET [SET ...] --split test`."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.caption import Caption
from model.checkpoint import load_captioner, write_json
from model.config import SearchConfig
from model.errors import CaptionModelError
from model.runtime.engine import CaptionEngine, load_engine
from training import calibrate, failures
from training.data import DataError, Picture, read
from training.gallery import Entry, write_gallery
from training.metrics import SCORES, MetricError, Report, expected_calibration_error, require_java, score
from training.objects import WORDS, ObjectReport, Objects, score_objects
from training.process import settle

log = logging.getLogger("training.evaluate")

GUESSES = (
    "The captions with the lowest CIDEr. Kinds marked “guessed” come from comparing words with the references' words, "
    "by the rules in training/failures.py, which never look at the picture: a right caption in other words is among "
    "them. Kinds marked “judged” were given by a person."
)


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


def print_figures(columns: Mapping[str, Mapping[str, Any]]) -> None:
    """One row a figure, one column a data set; intervals in brackets."""
    names = [name for name in next(iter(columns.values())) if name != "intervals"]
    print(f"{'':<20}" + "".join(f"{source:>24}" for source in columns))
    for name in names:
        cells = []
        for facts in columns.values():
            cell = f"{facts[name]:.2f}" if name in SCORES or name.startswith("objects_") else str(facts[name])
            low, high = facts["intervals"].get(name, (None, None))
            cells.append(cell if low is None else f"{cell} [{low:.1f}, {high:.1f}]")
        print(f"{name.replace('_', ' '):<20}" + "".join(f"{cell:>24}" for cell in cells))


def print_searches(results: Sequence[Result]) -> None:
    """One row a search and data set."""
    print(f"{'beam':>4} {'penalty':>8} {'block':>6} {'BLEU-4':>7} {'METEOR':>7} {'CIDEr':>7} {'distinct':>9}  set")
    for result in results:
        search, scores = result.search, result.report.scores
        print(
            f"{search.beam_size:>4} {search.length_penalty:>8g} {search.block_ngram:>6} {scores['BLEU-4']:>7.2f} "
            f"{scores['METEOR']:>7.2f} {scores['CIDEr']:>7.2f} {result.report.distinct:>9}  {result.source}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Score a checkpoint.")
    parser.add_argument("--model", type=Path, default=Path("model/weights/default"), help="a checkpoint folder")
    parser.add_argument("--data", required=True, nargs="+", help="caption sets; PATH[:val=N,seed=S]")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--engine", choices=("auto", "torch", "openvino"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as there are")
    several = "; several values are all tried, on any split but test"
    parser.add_argument("--beam", type=int, nargs="+", help="beam size" + several)
    parser.add_argument("--length-penalty", type=float, nargs="+", help="length penalty" + several)
    parser.add_argument("--block-ngram", type=int, nargs="+", help="n-gram said once at most, 0 for none" + several)
    parser.add_argument("--objects", type=Path, default=WORDS, help="file of the object words that are counted")
    parser.add_argument("--metrics", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--gallery", type=Path, help="write pictures, captions and references to this HTML file")
    parser.add_argument("--failures", type=int, default=0, help="only the N worst captions in the gallery, by kind")
    parser.add_argument("--judgements", type=Path, help="JSON of picture name -> [kind, note], put in place of guesses")
    options = parser.parse_args(arguments)
    settle()
    if options.failures and not options.gallery:
        parser.error("--failures needs --gallery")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _run(options)
    except (CaptionModelError, DataError, MetricError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    require_java()
    data = read(*options.data)
    pictures = data.required(options.split)
    judged = failures.read_judgements(options.judgements) if options.judgements else None
    engine = load_engine(options.model, options.device, options.engine, options.threads)
    searches = _searches(engine.config.search, options)
    if len(searches) > 1 and options.split == "test":
        raise ValueError("a search chosen on the test pictures is no test any more: compare searches with --split val")

    results = evaluate(engine, pictures, searches, Objects(options.objects))
    # The search that does best on the first data set is the one to look at.
    first = [result for result in results if result.source == results[0].source]
    best = max(first, key=lambda result: result.report.scores["CIDEr"]).search
    chosen = [result for result in results if result.search == best]
    columns = {result.source: result.facts() for result in chosen}
    for result in chosen:
        error = calibration_error(options.model, result.pictures, engine.device)
        columns[result.source]["calibration_error"] = round(error, 4)

    model = engine.config
    print(f"{model.name} {model.version}, {engine.name} on {engine.device}, split {options.split}")
    if len(searches) > 1:
        print_searches(results)
    print(describe(best))
    print_figures(columns)
    if options.metrics:
        content: dict[str, Any] = {
            "model": {"name": model.name, "version": model.version},
            "engine": engine.name,
            "device": engine.device,
            "split": options.split,
            "search": asdict(best),
            "sets": columns,
        }
        if len(searches) > 1:
            content["searches_tried"] = [{"search": asdict(r.search), "set": r.source, **r.facts()} for r in results]
        write_json(options.metrics, content)
        print(f"figures: {options.metrics}")
    if options.gallery:
        entries = entries_of(chosen, options.failures, judged)
        facts = {"model": f"{model.name} {model.version}", "search": describe(best)}
        for source, column in columns.items():
            facts[source] = ", ".join(f"{name} {column[name]:.1f}" for name in SCORES)
        if options.failures:
            kinds = failures.tally(entry.failures for entry in entries)
            facts["gravest kind"] = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
            print(f"{len(entries)} failures, gravest kind: {facts['gravest kind']}")
        title = f"{len(entries)} failures" if options.failures else f"{len(entries)} captions"
        write_gallery(options.gallery, title, facts, entries, GUESSES if options.failures else "")
        print(f"gallery: {options.gallery}")


def _searches(default: SearchConfig, options: argparse.Namespace) -> list[SearchConfig]:
    """Every combination of the values asked for; what was not asked for is the checkpoint's own."""
    default = replace(default, strategy="beam", num_captions=1)
    return [
        replace(default, beam_size=beam, length_penalty=penalty, block_ngram=block)
        for beam, penalty, block in itertools.product(
            options.beam or [default.beam_size],
            options.length_penalty or [default.length_penalty],
            options.block_ngram if options.block_ngram is not None else [default.block_ngram],
        )
    ]


if __name__ == "__main__":
    sys.exit(main())
