"""The model card of a release: its facts, as metrics.json holds them, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")


def card(facts: Mapping[str, Any]) -> str:
    size = facts["size"]
    lines = [f"# {facts['name']} {facts['version']}", "", facts["intended"], "", "## Figures", ""]
    lines += [
        f"{size['parameters_millions']} M parameters, {size['encoder_gflops']} GFLOPs for the "
        f"encoder, a vocabulary of {size['vocabulary']} words. Search: {facts['search']}. "
        f"Temperature {facts['temperature']}.",
        "",
    ]
    for split in ("test", "validation"):
        for source, figures in facts[split].items():
            lines += _scores(source, split, figures)
    lines += _review(facts) if facts.get("review") else []
    lines += _rankings(facts["rankings_on_validation"]) if facts.get("rankings_on_validation") else []
    lines += ["Percent, coco-caption scoring by `training.evaluation`. Nothing was chosen on the test pictures.", ""]
    lines += ["## Training", "", *map(_stage, facts["training"]), ""]
    lines += ["## Data", "", *_listed(facts["data"]), "", "## Terms", "", facts["terms"], ""]
    lines += ["## Limits", "", *_listed(facts["limits"]), ""]
    lines += ["## Failures seen", "", *_listed(facts["failures"]), ""] if facts["failures"] else []
    return "\n".join(lines)


def _listed(texts: Iterable[str]) -> list[str]:
    return [f"- {text}" for text in texts]


def _scores(source: str, split: str, figures: Mapping[str, Any]) -> list[str]:
    """A set's scores as a table, and what its captions are like."""
    return [
        f"{source}, {figures['pictures']} {split} pictures:",
        "",
        f"| {' | '.join(SCORES)} |",
        f"|{'---|' * len(SCORES)}",
        f"| {' | '.join(format(figures[name], '.1f') for name in SCORES)} |",
        "",
        f"{figures['distinct_captions']} distinct captions of {figures['mean_length']} words on average, "
        f"{figures['repeated_bigrams']} % with a bigram said twice, "
        f"calibration error {figures['calibration_error']}.",
        "",
        *([_objects(figures), ""] if "objects_right" in figures else []),
    ]


def _objects(figures: Mapping[str, Any]) -> str:
    """Does it make things up? In a sentence."""
    right, found = (
        "{:.1f} % ({:.1f} to {:.1f})".format(figures[name], *figures["intervals"][name])
        for name in ("objects_right", "objects_found")
    )
    return f"Of the objects that captions name {right} are there; of those that two people name {found} are named."


def _review(facts: Mapping[str, Any]) -> list[str]:
    """What the threshold for a review means, by set (`training.finishing.release.review_threshold`)."""
    sets = "; ".join(
        f"{source} {figures['above']} %, which name {figures['objects_right_above']} % of their objects "
        f"rightly, the others {figures['objects_right_below']} %"
        for source, figures in facts["review"].items()
    )
    return [f"Captions with a reliability of at least {facts['review_below']}, on validation pictures: {sets}.", ""]


def _rankings(compared: list[dict[str, Any]]) -> list[str]:
    """What each witness adds to the order of the candidates (`training.finishing.rerank.compare`)."""
    sources = list(compared[0]["CIDEr"])
    lines = [
        "What orders the candidates of the search, CIDEr on validation pictures (`training.scoring.cider`; in "
        "brackets the change, and its 95 % interval over pictures):",
        "",
        f"| order | {' | '.join(sources)} |",
        f"|{'---|' * (1 + len(sources))}",
    ]
    for row in compared:
        cells = [
            "{:.1f} ({:+.1f}, {:+.1f} to {:+.1f})".format(cider, row["change"][name], *row["interval"][name])
            for name, cider in row["CIDEr"].items()
        ]
        lines.append(f"| {row['order']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _stage(stage: Mapping[str, Any]) -> str:
    best = stage["history"][stage["best_epoch"] - 1]
    if "val_cider" in best:
        reached = "CIDEr " + ", ".join(f"{source} {value:.1f}" for source, value in best["val_cider"].items())
    else:
        reached = f"mean average precision of the tags {best['val_map']:.1f}"
    return f"- `{stage['recipe']['name']}`: {stage['epochs']} epochs, best {stage['best_epoch']}; validation {reached}"
