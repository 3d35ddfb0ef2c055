"""Make a trained checkpoint a released one: `python -m training.release RUN... --data SET... --to FOLDER`.

Chooses the search and fits the temperature on validation pictures, exports the serving graphs, scores
the test pictures once with the engine that serves, and writes metrics.json and the model card.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.captioner import Captioner
from model.checkpoint import METRICS, load_captioner, save_captioner, write_config, write_json
from model.config import SearchConfig
from model.errors import CaptionModelError
from model.runtime import load_engine
from model.vocabulary import words_of
from training import calibrate
from training.cider import CiderD
from training.data import CaptionData, DataError, Picture, read
from training.evaluate import caption_pictures, describe, evaluate
from training.export import export
from training.metrics import MetricError, expected_calibration_error, repeats_bigram, require_java
from training.process import settle
from training.train import best_epoch

log = logging.getLogger("training.release")

BEAMS, LENGTH_PENALTIES, BLOCKS = (2, 3, 5), (0.4, 0.7, 1.0, 1.3), (2, 3)


def choose_search(folder: Path, pictures: Sequence[Picture]) -> tuple[SearchConfig, list[dict[str, Any]]]:
    """The search with the best CIDEr and BLEU-4 (their sum, percent) on `pictures` of those tried, and what each gave.

    Of searches within 0.3 of the best, one that repeats few bigrams, then the smallest beam.
    """
    from pycocoevalcap.bleu.bleu import Bleu

    engine = load_engine(folder, "cpu")
    searches = [
        replace(engine.config.search, beam_size=beam, length_penalty=penalty, block_ngram=block)
        for beam, penalty, block in itertools.product(BEAMS, LENGTH_PENALTIES, BLOCKS)
    ]
    sound, captions = caption_pictures(engine, pictures, searches)
    references = [[words_of(c) for c in picture.captions] for picture in sound]
    scorer, truth = CiderD(references), {i: [" ".join(words) for words in mine] for i, mine in enumerate(references)}
    tried = []
    for search, mine in zip(searches, captions, strict=True):
        words = [words_of(caption.text) for caption in mine]
        bleu, _ = Bleu(4).compute_score(truth, {i: [" ".join(said)] for i, said in enumerate(words)}, verbose=0)
        tried.append(
            {
                "beam_size": search.beam_size,
                "length_penalty": search.length_penalty,
                "block_ngram": search.block_ngram,
                "CIDEr": round(100 * float(scorer.score(words, range(len(words))).mean()), 2),
                "BLEU-4": round(100 * bleu[3], 2),
                "repeated_bigrams": round(100 * sum(map(repeats_bigram, words)) / len(words), 2),
                "distinct_captions": len({caption.text for caption in mine}),
            }
        )
        log.info("%s", tried[-1])
    sums = [row["CIDEr"] + row["BLEU-4"] for row in tried]
    best = max(sums)
    rank = min(
        (row["repeated_bigrams"] > 1, row["beam_size"], -total, i)
        for i, (row, total) in enumerate(zip(tried, sums, strict=True))
        if total >= best - 0.3
    )
    return searches[rank[-1]], tried


def size_of(captioner: Captioner) -> dict[str, Any]:
    """Parameters, in millions, and the encoder's multiply-adds x 2 for one picture, in 10^9."""
    size = captioner.config.preprocess.size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        captioner.encoder(torch.zeros(1, 3, size, size))
    return {
        "parameters_millions": round(sum(p.numel() for p in captioner.parameters()) / 1e6, 2),
        "encoder_parameters_millions": round(sum(p.numel() for p in captioner.encoder.parameters()) / 1e6, 2),
        "encoder_gflops": round(counter.get_total_flops() / 1e9, 3),
        "vocabulary": len(captioner.vocabulary),
    }


def stages_of(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """What each training run was told and what it reached, in the order they were run.

    A release among `runs`, which training went on from, stands for the runs that led to it.
    """
    stages: list[dict[str, Any]] = []
    for run in runs:
        if (run / METRICS).is_file():
            stages += json.loads((run / METRICS).read_text(encoding="utf-8"))["training"]
            continue
        try:
            recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
            history = json.loads((run / "history.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{run} is neither a finished run nor a release: {error}") from error
        best = best_epoch(history)
        stages.append({"recipe": recipe, "epochs": len(history), "best_epoch": best["epoch"], "history": history})
    return stages


def card(facts: Mapping[str, Any]) -> str:
    """The model card as Markdown, from the facts that metrics.json holds."""
    lines = [f"# {facts['name']} {facts['version']}", "", facts["intended"], "", "## Figures", ""]
    lines += [
        f"{facts['size']['parameters_millions']} M parameters, {facts['size']['encoder_gflops']} GFLOPs for the "
        f"encoder, a vocabulary of {facts['size']['vocabulary']} words. Search: {facts['search']}. "
        f"Temperature {facts['temperature']}.",
        "",
    ]
    names = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
    for split in ("test", "validation"):
        for source, figures in facts[split].items():
            lines += [f"{source}, {figures['pictures']} {split} pictures:", ""]
            lines += [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
            lines += [f"| {' | '.join(format(figures[name], '.1f') for name in names)} |", ""]
            lines += [
                f"{figures['distinct_captions']} distinct captions of {figures['mean_length']} words on average, "
                f"{figures['repeated_bigrams']} % with a bigram said twice, "
                f"calibration error {figures['calibration_error']}.",
                "",
            ]
    lines += ["Percent, coco-caption scoring by `training.evaluate`. Nothing was chosen on the test pictures.", ""]
    lines += ["## Training", ""]
    for stage in facts["training"]:
        best = stage["history"][stage["best_epoch"] - 1]
        ciders = ", ".join(f"{source} {value:.1f}" for source, value in best["val_cider"].items())
        lines.append(
            f"- `{stage['recipe']['name']}`: {stage['epochs']} epochs, best {stage['best_epoch']}; "
            f"validation CIDEr {ciders}"
        )
    lines += ["", "## Data", "", *(f"- {text}" for text in facts["data"]), "", "## Terms", "", facts["terms"], ""]
    lines += ["## Limits", "", *(f"- {text}" for text in facts["limits"]), ""]
    lines += ["## Failures seen", "", *(f"- {text}" for text in facts["failures"]), ""]
    return "\n".join(lines)


def release(
    runs: Sequence[Path], specs: Sequence[str], folder: Path, notes: Mapping[str, Any], name: str, version: str
) -> None:
    """Write the release of the last of `runs` into `folder`, which keeps what it holds until the new one is whole."""
    # All that may be missing, before what takes minutes.
    require_java()
    training = stages_of(runs)
    captioner = load_captioner(runs[-1] / "best")
    data = read(*specs)
    for split in ("val", "test"):
        if not data.split(split):
            raise DataError(f"no {split} pictures in the data; hold some out with PATH:{split}=N")
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made, old = Path(temporary) / "new", Path(temporary) / "old"
        _release(training, captioner, data, made, notes, name, version)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(made, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise


def _release(
    training: Sequence[Mapping[str, Any]],
    captioner: Captioner,
    data: CaptionData,
    folder: Path,
    notes: Mapping[str, Any],
    name: str,
    version: str,
) -> None:
    val, test = data.split("val"), data.split("test")
    first = val[0].source  # the first data set decides
    chosen_on = [picture for picture in val if picture.source == first]
    captioner.config = replace(captioner.config, name=name, version=version)
    outputs, targets = calibrate.teacher_force(captioner, chosen_on)
    temperature = calibrate.fit_temperature(captioner, outputs, targets)
    captioner.config = replace(captioner.config, temperature=temperature)
    save_captioner(captioner, folder, {})
    export(folder)
    search, tried = choose_search(folder, chosen_on)
    captioner.config = replace(captioner.config, search=search)
    facts: dict[str, Any] = {
        "name": name,
        "version": version,
        **notes,
        "size": size_of(captioner),
        "search": describe(search),
        "temperature": temperature,
        "searches_tried_on_validation": tried,
        "training": training,
    }
    write_config(folder, captioner.config, captioner.vocabulary, graphs=True)  # the search is no part of the graphs
    engine = load_engine(folder, "cpu")
    for split, pictures in (("validation", val), ("test", test)):
        facts[split] = {}
        for result in evaluate(engine, pictures, [search]):
            outputs, targets = calibrate.teacher_force(captioner, result.pictures)
            error = expected_calibration_error(*calibrate.confidence(captioner, outputs, targets, temperature))
            facts[split][result.source] = {**result.facts(), "calibration_error": round(error, 4)}
            log.info("%s %s: %s", split, result.source, facts[split][result.source])
    write_json(folder / METRICS, facts)
    (folder / "README.md").write_text(card(facts), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.release", description="Release a trained checkpoint.")
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders of the runs that led to it, or of a release; the last one's best"
    )
    parser.add_argument("--data", required=True, nargs="+", help="caption sets, the first decides; PATH[:val=N,seed=S]")
    parser.add_argument("--to", type=Path, required=True, help="folder of the released checkpoint")
    parser.add_argument("--notes", type=Path, required=True, help="TOML with the words of the card")
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    options = parser.parse_args(arguments)
    settle()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        notes = tomllib.loads(options.notes.read_text(encoding="utf-8"))
        missing = {"intended", "data", "terms", "limits", "failures"} - set(notes)
        if missing:
            raise DataError(f"{options.notes} lacks {', '.join(sorted(missing))}")
        release(options.runs, options.data, options.to, notes, options.name, options.version)
    except (CaptionModelError, DataError, MetricError, OSError, tomllib.TOMLDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
