"""A checkpoint is a folder that holds everything: configuration, vocabulary, weights, figures, serving graphs.

    config.json        format version, ModelConfig, vocabulary, digests of the files beside it
    model.safetensors  the weights, matrices in float16, vectors in float32; graphs in float16 read theirs from it too
    metrics.json       what was measured, and the model card's facts (served at GET /model)
    README.md          the model card
    neighbours.npz     captions of similar training pictures, where candidates are ranked by them (model.neighbours)
    graphs/            the exported serving graphs

No pickle anywhere. Reading needs neither torch nor the data the model was trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig, from_dict
from model.errors import CheckpointError
from model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from model.captioner import Captioner

FORMAT_VERSION = 1
CONFIG, WEIGHTS, METRICS, GRAPHS = "config.json", "model.safetensors", "metrics.json", "graphs"
NEIGHBOURS = "neighbours.npz"
GRAPH_CONSTANTS = "graphs.constants"  # the tensor among the weights that only graphs read: their other constants


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint folder."""

    folder: Path
    config: ModelConfig
    vocabulary: Vocabulary
    metrics: Mapping[str, Any]
    digests: Mapping[str, str]  # file name -> SHA-256, as recorded when it was written

    def verified(self, name: str) -> Path:
        """The path of a file in the folder; raises `CheckpointError` unless it is there and undamaged."""
        path = self.folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; copy the whole checkpoint folder, or export it again")
        if digest(path) != self.digests.get(name):
            raise CheckpointError(
                f"{path} is damaged or of another checkpoint; copy the whole folder, or export it again"
            )
        return path


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's configuration, vocabulary and figures.

    Raises `CheckpointError`, with what to do, where the folder is missing, damaged or of another format.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder at {folder}; train one with scripts/train, or fix the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; "
            "use the program version that wrote it, or train and export again"
        )
    try:
        config = from_dict(ModelConfig, content["model"])
        vocabulary = Vocabulary(content["vocabulary"], content.get("capitals"))
        digests = dict(content["files"])
        same = content["vocabulary_fingerprint"] == vocabulary.fingerprint()
    except (KeyError, TypeError, AttributeError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again") from error
    if not same:
        raise CheckpointError(f"{path}: the vocabulary is not the one the weights were trained with; copy it again")
    return Checkpoint(folder, config, vocabulary, _metrics(folder / METRICS), digests)


def load_captioner(folder: Path) -> Captioner:
    """The torch model of a checkpoint, float32, in eval mode."""
    from safetensors import SafetensorError, safe_open

    from model.captioner import Captioner

    checkpoint = open_checkpoint(folder)
    path = checkpoint.verified(WEIGHTS)
    captioner = Captioner(checkpoint.config, checkpoint.vocabulary)
    try:
        with safe_open(path, "pt") as file:
            fingerprint = (file.metadata() or {}).get("vocabulary_fingerprint")
            names = set(file.keys()) - {GRAPH_CONSTANTS}
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again") from error
    if fingerprint != checkpoint.vocabulary.fingerprint():
        raise CheckpointError(f"{path} was trained with another vocabulary than {CONFIG} holds; copy both together")
    try:
        captioner.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {CONFIG}: {error}") from error
    return captioner.eval()


def save_captioner(
    captioner: Captioner, folder: Path, metrics: Mapping[str, Any], graph_constants: bytes | None = None
) -> None:
    """Write `captioner` and `metrics` as a checkpoint folder; its serving graphs are `training.finishing.export`'s.

    graph_constants: what those graphs need beside the weights, a multiple of 8 bytes.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: (t.half() if t.ndim > 1 else t).contiguous().cpu() for name, t in captioner.state_dict().items()}
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise CheckpointError(f"{bad[0]} holds values that are not finite in float16; nothing was written")
    if graph_constants is not None:
        tensors[GRAPH_CONSTANTS] = torch.frombuffer(bytearray(graph_constants), dtype=torch.int64)  # begins at 8 n
    fingerprint = captioner.vocabulary.fingerprint()
    temporary = folder / (WEIGHTS + ".tmp")
    save_file(tensors, temporary, metadata={"vocabulary_fingerprint": fingerprint})
    temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
    os.replace(temporary, folder / WEIGHTS)
    write_json(folder / METRICS, metrics)
    write_config(folder, captioner.config, captioner.vocabulary)


def write_config(folder: Path, config: ModelConfig, vocabulary: Vocabulary, graphs: bool = False) -> None:
    """Write config.json with the digests of the weights in `folder` and, if they are made of them, of the graphs.

    Without its digest a graph is refused: no engine runs the graphs of other weights than the folder's.
    """
    files = [folder / WEIGHTS, folder / NEIGHBOURS, *(sorted((folder / GRAPHS).glob("*")) if graphs else ())]
    write_json(
        folder / CONFIG,
        {
            "format_version": FORMAT_VERSION,
            "model": asdict(config),
            "files": {path.relative_to(folder).as_posix(): digest(path) for path in files if path.is_file()},
            "vocabulary_fingerprint": vocabulary.fingerprint(),
            "vocabulary": list(vocabulary.words),
            "capitals": vocabulary.capitals,
        },
    )


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _metrics(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again") from error
    return content if isinstance(content, dict) else {}
