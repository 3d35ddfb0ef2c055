"""Makes a trained checkpoint a released one.

Chooses the search and fits the temperature on validation pictures, exports the serving graphs, scores
the test pictures once with the engine that serves, and writes metrics.json and the model card.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.caption import Caption
from model.captioner import Captioner
from model.checkpoint import (
    METRICS,
    NEIGHBOURS,
    load_captioner,
    open_checkpoint,
    save_captioner,
    write_config,
    write_json,
)
from model.config import RerankConfig, SearchConfig
from model.runtime import load_engine
from model.runtime.engine import CaptionEngine
from model.vocabulary import words_of
from training import evaluation
from training.data import CaptionData, DataError, Picture, read
from training.evaluation import Result, candidates_of, describe, evaluate
from training.finishing import calibrate, rerank
from training.finishing.card import card
from training.finishing.export import export
from training.finishing.quantise import calibration_pictures
from training.scoring.bleu import BleuCounts, corpus_bleu
from training.scoring.metrics import repeats_bigram, require_java
from training.validation import best_epoch, chosen_by, ciders

log = logging.getLogger("training.release")

BEAMS, LENGTH_PENALTIES, BLOCKS = (3, 5, 10), (0.5, 0.7, 1.0, 1.3), (2, 3)
FEATURE_SIZE = 96  # numbers that similar pictures are found by
RIGHT = 90.0  # percent of the objects in captions above the threshold for a review that are to be right


def choose_search(
    folder: Path, captioner: Captioner, pictures: Sequence[Picture], weights: Mapping[str, float]
) -> tuple[SearchConfig, RerankConfig, list[dict[str, Any]], list[dict[str, Any]]]:
    """The search and the ranking with the best CIDEr and BLEU-4 on `pictures` of those tried, and what each gave.

    Last, what each witness adds to the ranking of that search's candidates (`rerank.compare`).
    For each search the ranking is chosen first (`rerank.choose`), then the search of them all (`best_of`).
    """
    engine = load_engine(folder, "cpu")
    reranker, engine.reranker = engine.reranker, None  # the search's own order: its candidates are wanted
    searches = [
        replace(engine.config.search, beam_size=beam, num_captions=beam, length_penalty=penalty, block_ngram=block)
        for beam, penalty, block in itertools.product(BEAMS, LENGTH_PENALTIES, BLOCKS)
    ]

    # --- what each search finds, of pictures that are encoded once
    sound: list[Picture] = []
    encoded: list[Any] = []
    found: list[list[list[Caption]]] = [[] for _ in searches]
    for decodable, regions, candidates in candidates_of(engine, pictures, searches):
        sound, encoded = [*sound, *decodable], [*encoded, regions]
        found = [[*mine, *more] for mine, more in zip(found, candidates, strict=True)]
    sources = [picture.source for picture in sound]

    # --- the ranking that suits each best, and what it then says
    tried: list[dict[str, Any]] = []
    rankings: list[RerankConfig] = []
    all_weighed: list[list[rerank.Candidates] | None] = []
    for search_config, mine in zip(searches, found, strict=True):
        ranking, weighed = engine.config.rerank, None
        if reranker is not None:
            features, tags = (np.concatenate([getattr(part, name) for part in encoded]) for name in ("feature", "tags"))
            weighed = rerank.weigh(
                captioner, reranker.neighbours, sound, mine, features, tags, search_config.length_penalty
            )
            ranking, _ = rerank.choose(weighed, sources, weights, ranking)
        best = [captions[weighed[i].chosen(ranking) if weighed else 0] for i, captions in enumerate(mine)]
        asked = {key: getattr(search_config, key) for key in ("beam_size", "length_penalty", "block_ngram")}
        tried.append({**asked, "rerank": asdict(ranking), **_figures(best, sound, weights)})
        rankings.append(ranking)
        all_weighed.append(weighed)
        log.info("%s", tried[-1])

    chosen = best_of(tried, weights)
    weighed, ranking = all_weighed[chosen], rankings[chosen]
    compared = rerank.compare(weighed, sources, weights, ranking) if weighed else []
    return replace(searches[chosen], num_captions=1), ranking, tried, compared


def _figures(captions: Sequence[Caption], pictures: Sequence[Picture], sources: Iterable[str]) -> dict[str, Any]:
    """What decides between searches, of a caption each of `pictures`: percent, CIDEr and BLEU-4 of each set."""
    words = [words_of(caption.text) for caption in captions]
    each, bleu = ciders(words, pictures), {}
    for source in sources:
        some = [i for i, picture in enumerate(pictures) if picture.source == source]
        counts = BleuCounts([[words_of(c) for c in pictures[i].captions] for i in some])
        bleu[source] = round(100 * corpus_bleu(counts([words[i] for i in some], range(len(some)))), 2)
    return {
        "CIDEr": {source: round(float(each[source].mean()), 2) for source in bleu},
        "BLEU-4": bleu,
        "repeated_bigrams": round(100 * sum(map(repeats_bigram, words)) / len(words), 2),
        "distinct_captions": len({caption.text for caption in captions}),
    }


def best_of(tried: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> int:
    """The place of the search with the best sum of CIDEr and BLEU-4, sets weighted as `weights` says.

    Of those within 0.3 of it one that repeats few bigrams, then the smallest beam, then the best BLEU-4: it differs
    less by chance than CIDEr does.
    """
    bleus = [chosen_by(row["BLEU-4"], weights) for row in tried]
    sums = [chosen_by(row["CIDEr"], weights) + bleu for row, bleu in zip(tried, bleus, strict=True)]
    near = [i for i, total in enumerate(sums) if total >= max(sums) - 0.3]
    return min(near, key=lambda i: (tried[i]["repeated_bigrams"] > 1, tried[i]["beam_size"], -bleus[i]))


def review_threshold(results: Sequence[Result]) -> tuple[float, dict[str, dict[str, float]]]:
    """The reliability from which on captions name `RIGHT` percent of their objects rightly, and what that means by set.

    Fitted on each set whose captions all together do not; the highest is taken. 0 where there is no such set: nothing
    needs a review.
    """
    needed = [0.0]
    for result in results:
        reliability, objects = np.array([caption.reliability for caption in result.captions]), result.objects
        if objects.precision >= RIGHT:
            continue
        order = np.argsort(-reliability, kind="stable")
        share = 100 * np.cumsum(objects.right[order]) / np.maximum(np.cumsum(objects.said[order]), 1)
        enough = np.flatnonzero(share >= RIGHT)
        last = int(enough[-1]) if len(enough) else 0
        needed.append(math.floor(1000 * reliability[order[last]]) / 1000)
    threshold = max(needed)
    figures = {}
    for result in results:
        above = np.array([caption.reliability for caption in result.captions]) >= threshold
        right, said = result.objects.right, result.objects.said
        figures[result.source] = {
            "above": round(100 * float(above.mean()), 1),
            "objects_right_above": round(100 * float(right[above].sum() / max(said[above].sum(), 1)), 1),
            "objects_right_below": round(100 * float(right[~above].sum() / max(said[~above].sum(), 1)), 1),
        }
    return threshold, figures


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


def _is_release(folder: Path) -> bool:
    """Whether it is a released checkpoint, not a training run."""
    return (folder / METRICS).is_file()


def stages_of(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """What each training run was told and what it reached, in the order they were run.

    A release among `runs`, which training went on from, stands for the runs that led to it.
    """
    stages: list[dict[str, Any]] = []
    for run in runs:
        if _is_release(run):
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


def release(
    runs: Sequence[Path],
    specs: Sequence[str],
    folder: Path,
    notes: Mapping[str, Any],
    name: str,
    version: str,
    choose: Mapping[str, float] | None = None,
    cache: Path = Path("cache"),
) -> None:
    """Write the release of the last of `runs` into `folder`, which keeps what it holds until the new one is whole.

    That may be a release itself, made anew: what similar pictures are found by, graphs, search and figures.
    choose: weights of the sets whose validation pictures search, ranking and temperature are chosen on; without any
    it is the first set. cache: where features are kept.
    """
    # All that may be missing, before what takes minutes.
    require_java()
    training = stages_of(runs)
    captioner = load_captioner(runs[-1] if _is_release(runs[-1]) else runs[-1] / "best")
    data = read(*specs)
    for split in ("val", "test"):
        data.required(split)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made, old = Path(temporary) / "new", Path(temporary) / "old"
        _release(training, captioner, data, made, notes, name, version, choose or {}, cache)
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
    choose: Mapping[str, float],
    cache: Path,
) -> None:
    val, test = data.split("val"), data.split("test")
    weights = choose or {val[0].source: 1.0}

    # --- what similar pictures are found by
    log.info("similar pictures: features of %d training pictures", len(data.split("train")))
    train, features = rerank.pooled(captioner, data.split("train"), cache)
    captioner.feature = rerank.fit_feature(features, FEATURE_SIZE)
    captioner.config = replace(captioner.config, name=name, version=version, rerank=RerankConfig(FEATURE_SIZE))

    # --- the temperature
    forced = _forced(captioner, val)
    outputs, targets = (torch.cat(part) for part in zip(*(forced[source] for source in weights), strict=True))
    captioner.config = replace(captioner.config, temperature=calibrate.fit_temperature(captioner, outputs, targets))

    # --- the checkpoint and its graphs
    folder.mkdir(parents=True, exist_ok=True)
    rerank.index(captioner, rerank.apply(captioner.feature, features), train).save(folder / NEIGHBOURS)
    save_captioner(captioner, folder, {})
    export(folder, calibration_pictures(train, captioner.config.preprocess))

    # --- search and ranking, which are no part of the graphs
    chosen_on = [picture for picture in val if picture.source in weights]
    search_config, ranking, tried, compared = choose_search(folder, captioner, chosen_on, weights)
    captioner.config = replace(captioner.config, search=search_config, rerank=ranking)
    write_config(folder, captioner.config, captioner.vocabulary, graphs=True)

    # --- figures
    facts: dict[str, Any] = {
        "name": name,
        "version": version,
        **notes,
        "size": size_of(captioner),
        "search": describe(search_config),
        "rerank": asdict(ranking),
        "temperature": captioner.config.temperature,
        "searches_tried_on_validation": tried,
        "rankings_on_validation": compared,
        "training": training,
        **_scored(load_engine(folder, "cpu"), captioner, val, test, forced, weights),
    }
    _write(folder, captioner, facts)


def measure(folder: Path, specs: Sequence[str], choose: Mapping[str, float]) -> None:
    """The figures of the release in `folder` again, in its card too; weights, graphs, search and ranking stay.

    For when what they depend on has changed, such as how pictures are read. choose: as of `release`.
    """
    require_java()
    facts, captioner, data = dict(open_checkpoint(folder).metrics), load_captioner(folder), read(*specs)
    val, test = data.required("val"), data.required("test")
    forced = _forced(captioner, val)
    scored = _scored(load_engine(folder, "cpu"), captioner, val, test, forced, choose or {val[0].source: 1.0})
    _write(folder, captioner, {**facts, **scored})


def _forced(captioner: Captioner, pictures: Sequence[Picture]) -> dict[str, tuple[Tensor, Tensor]]:
    """What `teacher_force` gives of each set's pictures."""
    return {
        source: evaluation.teacher_force(captioner, [picture for picture in pictures if picture.source == source])
        for source in dict.fromkeys(picture.source for picture in pictures)
    }


def _write(folder: Path, captioner: Captioner, facts: Mapping[str, Any]) -> None:
    """Figures and card of the release in `folder`, and from which reliability on its captions need no review."""
    captioner.config = replace(captioner.config, review_below=facts["review_below"])
    write_json(folder / METRICS, facts)
    write_config(folder, captioner.config, captioner.vocabulary, graphs=True)
    (folder / "README.md").write_text(card(facts), encoding="utf-8")


def _scored(
    engine: CaptionEngine,
    captioner: Captioner,
    val: Sequence[Picture],
    test: Sequence[Picture],
    forced: Mapping[str, tuple[Tensor, Tensor]],
    weights: Mapping[str, float],
) -> dict[str, Any]:
    """The figures of each set, and from which reliability on a caption needs no review.

    forced: of each set what `teacher_force` gives of its validation pictures.
    """

    def figures(results: Sequence[Result], forced: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
        facts = {}
        for result in results:
            error = evaluation.calibration_error(captioner, forced[result.source])
            facts[result.source] = {**result.facts(), "calibration_error": round(error, 4)}
            log.info("%s: %s", result.source, facts[result.source])
        return facts

    search_config = captioner.config.search
    validated = evaluate(engine, val, [search_config])
    threshold, review = review_threshold([result for result in validated if result.source in weights])
    log.info("review below %s: %s", threshold, review)
    validation = figures(validated, forced)
    tested = evaluate(engine, test, [search_config])
    forced = {result.source: evaluation.teacher_force(captioner, result.pictures) for result in tested}
    return {"validation": validation, "review_below": threshold, "review": review, "test": figures(tested, forced)}
