"""Where a run stands, saved so that a killed run goes on as if it had not been."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.captioner import Captioner
from model.checkpoint import WEIGHTS, open_checkpoint
from model.config import from_dict
from model.errors import ConfigError
from training import distributed, optimisation
from training.config import Recipe
from training.data import CaptionData, DataError

STATE = "state.pt"  # in the folder of a run: what it goes on from


@dataclass
class Progress:
    epoch: int = 0  # epochs finished
    step: int = 0  # steps of the present epoch done
    loss: float = 0.0  # summed over these steps
    metric: float = 0.0  # likewise, see `Objective.metric`
    gradient_norm: float = 0.0  # likewise
    best: float = -math.inf  # see `score_of`
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def end_step(self, loss: float, metric: float, gradient_norm: float) -> None:
        self.step += 1
        self.loss, self.metric = self.loss + loss, self.metric + metric
        self.gradient_norm += gradient_norm

    def means(self, metric: str) -> dict[str, float]:
        """Loss and metric a step of the present epoch so far; metric: its name."""
        return {"loss": self.loss / self.step, metric: self.metric / self.step}

    def end_epoch(self, metric: str, learning_rate: float, validation: Mapping[str, Any]) -> dict[str, Any]:
        """Count the epoch; what the history keeps of it. metric: its name."""
        record = {
            "epoch": self.epoch + 1,
            "train_loss": self.loss / self.step,
            metric: self.metric / self.step,
            "learning_rate": learning_rate,
            "gradient_norm": self.gradient_norm / self.step,
            **validation,
        }
        self.epoch, self.step = self.epoch + 1, 0
        self.loss, self.metric, self.gradient_norm = 0.0, 0.0, 0.0
        self.history.append(record)
        return record


def provenance(
    recipe: Recipe,
    captioner: Captioner,
    data: CaptionData,
    digests: Mapping[str, Sequence[str]],
    init: Path | None,
    teachers: Sequence[Path],
) -> dict[str, str]:
    """Digests of what a run's result depends on besides its recipe."""

    def checkpoint(folder: Path) -> str:
        opened = open_checkpoint(folder)
        return digest([dict(opened.digests)[WEIGHTS], asdict(opened.config), opened.vocabulary.fingerprint()])

    made_from = {"vocabulary": captioner.vocabulary.fingerprint()}
    for split, name in (("train", "training"), ("val", "validation")):
        pictures = data.split(split)
        made_from[f"{name} pictures"] = digest([[p.source for p in pictures], list(digests[split])])
        made_from[f"{name} captions"] = digest([p.captions for p in pictures])
    made_from["processes"] = str(distributed.world_size())
    made_from["init"] = checkpoint(init) if init else "none"
    if init is None and Path(recipe.encoder_weights).is_dir():
        made_from["encoder"] = checkpoint(Path(recipe.encoder_weights))
    made_from["teachers"] = ", ".join(map(checkpoint, teachers)) or "none"
    return made_from


def digest(content: Any) -> str:
    """Of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def read_state(path: Path, recipe: Recipe, made_from: Mapping[str, str]) -> dict[str, Any] | None:
    """What an earlier run saved, if any; raises `DataError` that says what differs where it was another run."""
    if not path.is_file():
        return None
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)  # no code runs
    theirs = {"processes": "1", **content.get("made_from", {})}
    other = [key for key in made_from if theirs.get(key) != made_from[key]]
    try:
        there = flattened(asdict(from_dict(Recipe, json.loads(content["recipe"]))))
    except ConfigError as error:
        raise DataError(f"{path.parent} holds a run of another version ({error}); take another --run folder") from error
    here = flattened(asdict(recipe))
    for key in sorted((here.keys() | there.keys()) - {"train.save_every"}):  # how often it saves changes no result
        if here.get(key) != there.get(key):
            other.append(f"{key} of the recipe ({there.get(key)!r} there, {here.get(key)!r} here)")
    if other:
        raise DataError(
            f"{path.parent} holds another run, with other {', '.join(other)}; take another --run folder or remove it"
        )
    return content


@distributed.on_main
def save_state(
    path: Path,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: optimisation.WeightAverage | None,
    progress: Progress,
    recipe: Recipe,
    made_from: Mapping[str, str],
) -> None:
    device = next(trained.parameters()).device
    content = {
        "model": trained.state_dict(),
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


def restore_state(
    content: Mapping[str, Any],
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: optimisation.WeightAverage | None,
) -> Progress:
    trained.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    if average and content["average"]:
        average.steps = content["average"]["steps"]
        for mine, saved in zip(average.shadow, content["average"]["shadow"], strict=True):
            mine.copy_(saved)
    torch.set_rng_state(content["rng"])
    if content["cuda_rng"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["cuda_rng"])
    older = {"figure": "metric"}  # as runs of release 2.0 and before saved it
    return Progress(**{older.get(name, name): value for name, value in content["progress"].items()})
