"""Score a checkpoint: `python -m training.commands.evaluate --model FOLDER --data SET [SET ...]`."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from model.checkpoint import load_captioner, write_json
from model.config import SearchConfig
from model.runtime import load_engine
from training.commands.arguments import add_data
from training.commands.ending import mendable
from training.data import read
from training.evaluation import Result, calibration_error, describe, entries_of, evaluate, teacher_force
from training.process import configure_process
from training.scoring import failures
from training.scoring.gallery import write_gallery
from training.scoring.metrics import SCORES, MetricError, require_java
from training.scoring.objects import WORDS, Objects

GUESSES = (
    "The captions with the lowest CIDEr. Kinds marked “guessed” come from comparing words with the references' words, "
    "by the rules in training/scoring/failures.py, which never look at the picture: a right caption in other words is "
    "among them. Kinds marked “judged” were given by a person."
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
        config, scores = result.search_config, result.report.scores
        print(
            f"{config.beam_size:>4} {config.length_penalty:>8g} {config.block_ngram:>6} {scores['BLEU-4']:>7.2f} "
            f"{scores['METEOR']:>7.2f} {scores['CIDEr']:>7.2f} {result.report.distinct:>9}  {result.source}"
        )


@mendable(MetricError, ValueError, OSError)
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.commands.evaluate", description="Score a checkpoint.")
    parser.add_argument("--model", type=Path, default=Path("model/weights/default"), help="a checkpoint folder")
    add_data(parser)
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
    configure_process()
    if options.failures and not options.gallery:
        parser.error("--failures needs --gallery")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _run(options)
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
    best = max(first, key=lambda result: result.report.scores["CIDEr"]).search_config
    chosen = [result for result in results if result.search_config == best]
    columns = {result.source: result.facts() for result in chosen}
    captioner = load_captioner(options.model).to(engine.device)
    for result in chosen:
        error = calibration_error(captioner, teacher_force(captioner, result.pictures))
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
            content["searches_tried"] = [
                {"search": asdict(r.search_config), "set": r.source, **r.facts()} for r in results
            ]
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
