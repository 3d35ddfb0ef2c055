"""A checkpoint's serving graphs.

OpenVINO graphs of the encoder (pixels to what the decoder needs of a picture) and of one decoding
step, the latter with float16 and with 8-bit weights. They are compared with torch on random pictures
and words before anything is written. Weights in float16 are stored once: graphs read them from where torch does.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import tempfile
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import openvino.opset13 as op
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.captioner import Captioner
from model.checkpoint import GRAPHS, WEIGHTS, load_captioner, open_checkpoint, save_captioner, write_config
from model.decoder import Decoder, Memory
from model.encoder import fold_norms
from model.errors import CaptionModelError
from model.runtime.openvino_engine import ENCODER, ENCODER_INT8, STEP, STEP_INT8
from model.vocabulary import SPECIAL, START
from training.finishing.quantise import calibrate, can_be_rounded, rounded

log = logging.getLogger("training.export")

TOLERANCE = 0.01  # accepted distance from torch's outputs, root mean square over root mean square
TOLERANCES = {STEP_INT8: 0.05, ENCODER_INT8: 0.1}  # the same in 8 bits; what is near a half rounds otherwise
_ALIGNMENT = 8  # bytes of the largest number in a graph
# Where the decoder does not attend there are none of those in `ATTENTION`; the last two where the captioner has them.
ENCODER_OUTPUTS = ("keys", "values", "start", "feature", "tags")
STEP_INPUTS = ("words", "parents", "state", "keys", "values")
STEP_OUTPUTS = ("log_probabilities", "state_out", "gates", "attention")
ATTENTION = ("keys", "values", "attention")


class ExportError(CaptionModelError):
    """The exported graphs would be of no use, or do not compute what torch computes; nothing was written."""


class EncoderGraph(nn.Module):
    """pixels (B, S, S, 3) uint8 -> keys (B, heads, d, L), values (B, heads, L, d), start (B, states * H).

    And, where the captioner has them, feature (B, d) and tags (B, G), as `model.captioner.Seen` has them.
    Keys and values lie as attention multiplies them (d = A / heads), so that no step turns them again. Without
    attention there are none.
    """

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.captioner = captioner

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        seen = self.captioner.see(pixels)
        more = (part for part in (seen.feature, seen.tags) if part.shape[-1])
        return *split(seen.memory, self.captioner.config.decoder.attention_heads), seen.memory.start, *more


class StepGraph(nn.Module):
    """One decoding step for B pictures with K hypotheses each.

    parents (B, K) name the hypothesis of the step before that each extends: the states are gathered
    inside the graph, and beams of a picture share its keys and values, which come last. `fast` prepares the
    decoder: a larger graph that reads less of itself in a step.
    """

    def __init__(self, decoder: Decoder, temperature: float, fast: bool = False) -> None:
        super().__init__()
        self.decoder, self.temperature = decoder, temperature
        with torch.no_grad():
            self.prepared = decoder.prepare() if fast else None

    def forward(
        self,
        words: Tensor,
        parents: Tensor,
        state: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        B, K = words.shape
        row = torch.arange(B)[:, None] * state.shape[1] + parents  # of each hypothesis before among all B * K
        extended = state.flatten(0, 1).index_select(0, row.flatten()).view(B, K, -1)
        # The decoder splits them again, so OpenVINO drops both turns.
        none = extended[:, :0]
        memory = Memory(none, none, extended) if keys is None or values is None else join(keys, values, extended)
        out = self.decoder.step(memory, words, extended, self.prepared)
        log_probabilities = self.decoder.log_probabilities(out.logits, self.temperature)
        results = log_probabilities, out.state, out.gates
        return results if out.attention is None else (*results, out.attention)


def split(memory: Memory, heads: int) -> tuple[()] | tuple[Tensor, Tensor]:
    """Keys and values (B, L, A) by head: (B, heads, d, L) and (B, heads, L, d). Nothing where there are no heads."""
    if not heads:
        return ()
    keys, values = (part.unflatten(-1, (heads, -1)) for part in memory[:2])
    return keys.permute(0, 2, 3, 1), values.transpose(1, 2)


def join(keys: Tensor, values: Tensor, start: Tensor) -> Memory:
    """The reverse of `split`."""
    return Memory(keys.permute(0, 3, 1, 2).flatten(2), values.transpose(1, 2).flatten(2), start)


def export(folder: Path, pictures: Sequence[Tensor] = ()) -> None:
    """Write the serving graphs of the checkpoint in `folder`; raises `ExportError` where they differ from torch.

    Its weights are written anew too, with the encoder's batch norms folded (`model.encoder.fold_norms`).
    pictures: batches as `calibrate` takes them; with them there is a graph of the encoder in 8 bits too, if it is of a
    kind that can be rounded.
    """
    captioner = load_captioner(folder)
    if len(captioner.vocabulary) == len(SPECIAL):
        raise ExportError("the vocabulary holds no word, so this model can say nothing; train with other captions")
    fold_norms(captioner.encoder)
    with torch.no_grad():
        for parameter in captioner.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())  # as the checkpoint holds them
    pixels, step = _examples(captioner)
    decoder, temperature = captioner.decoder, captioner.config.temperature
    plain, fast = StepGraph(decoder, temperature), StepGraph(decoder, temperature, fast=True)
    missing = set() if decoder.attends else set(ATTENTION)
    missing |= {name for name in ("feature", "tags") if getattr(captioner, name) is None}
    encoder_outputs, step_inputs, step_outputs = (
        [name for name in names if name not in missing] for names in (ENCODER_OUTPUTS, STEP_INPUTS, STEP_OUTPUTS)
    )
    modules: Mapping[str, tuple[nn.Module, tuple[Tensor, ...], Sequence[str], Sequence[str]]] = {
        ENCODER: (EncoderGraph(captioner), (pixels,), ("pixels",), encoder_outputs),
        STEP: (plain, step, step_inputs, step_outputs),
        STEP_INT8: (fast, step, step_inputs, step_outputs),
    }
    ranges: tuple[float, ...] = ()
    if pictures and can_be_rounded(captioner.encoder):
        copied = copy.deepcopy(captioner)
        ranges = calibrate(copied, pictures)
        modules = {ENCODER_INT8: (EncoderGraph(copied), *modules[ENCODER][1:]), **modules}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name, (module, example, inputs, outputs) in modules.items():
            with rounded(copied, ranges) if name == ENCODER_INT8 else nullcontext():
                graph = _convert(module.eval(), example, inputs, outputs)
                graph.set_rt_info(",".join(decoder.gate_names), ["gate_names"])
                graph.set_rt_info(",".join(map(str, captioner.grid)), ["grid"])
                if name == ENCODER_INT8:
                    _store_small(graph)
                if name == STEP_INT8:
                    graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
                path = Path(temporary) / f"{name}.xml"
                ov.save_model(graph, path, compress_to_fp16=True)
                _check(path, plain if module is fast else module, example, outputs, math.prod(captioner.grid))
        _save_once(captioner, folder, [Path(temporary) / f"{name}.xml" for name in modules if name != STEP_INT8])
        _replace_all(folder / GRAPHS, Path(temporary))
    write_config(folder, captioner.config, captioner.vocabulary, graphs=True)


@torch.inference_mode()
def _examples(captioner: Captioner) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What the graphs are traced with and compared on: pixels of two pictures, a step of three hypotheses each."""
    size = captioner.config.preprocess.size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)
    memory = captioner.encode(pixels)
    state = captioner.decoder.initial_state(memory, 1)
    words = torch.randint(START, len(captioner.vocabulary), (2, 3), generator=generator)
    heads = captioner.config.decoder.attention_heads
    return pixels, (words, torch.zeros_like(words), state, *split(memory, heads))


def _replace_all(folder: Path, new: Path) -> None:
    """Put the files of `new` into `folder`, in place of all that an earlier export left there."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if not (new / file.name).exists():
            file.unlink()
    for file in new.iterdir():
        os.replace(file, folder / file.name)


def _convert(module: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str]) -> ov.Model:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every shape it reads
        # Tracing it twice to compare both adds nothing: `_check` compares with torch, at other sizes too.
        graph = ov.convert_model(torch.jit.trace(module, tuple(t.clone() for t in example), check_trace=False))
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(graph.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    # Batch and beams vary; everything else is known, which lets OpenVINO plan.
    varying = {"pixels": (0,), "keys": (0,), "values": (0,), "words": (0, 1), "parents": (0, 1), "state": (0, 1)}
    shapes = {}
    for name, tensor in zip(inputs, example, strict=True):
        shapes[name] = ov.PartialShape([-1 if i in varying[name] else n for i, n in enumerate(tensor.shape)])
    graph.reshape(shapes)
    graph.validate_nodes_and_infer_types()
    return graph


def _store_small(graph: ov.Model) -> None:
    """Weights that the graph rounds become the integers that come of it, times their step; other matrices float16.

    OpenVINO's own way to float16 leaves graphs that round alone.
    """
    for node in graph.get_ops():
        if node.get_type_name() != "Constant":
            continue
        readers = list(node.output(0).get_target_inputs())
        rounding = readers[0].get_node()
        if len(readers) == 1 and rounding.get_type_name() == "FakeQuantize" and readers[0].get_index() == 0:
            step = rounding.input_value(4).get_node().data.astype(np.float32) / 127  # the largest that comes out
            integers = op.constant(np.rint(node.data / step).astype(np.int8))
            rounding.output(0).replace(op.multiply(op.convert(integers, "f32"), op.constant(step)).output(0))
        elif node.get_element_type() == ov.Type.f32 and _is_half(node.data):
            half = op.convert(op.constant(node.data.astype(np.float16)), "f32")
            for reader in readers:
                reader.replace_source_output(half.output(0))
    graph.validate_nodes_and_infer_types()


def _is_half(values: NDArray[np.float32]) -> bool:
    """Whether they are a matrix of numbers that float16 holds."""
    return values.size >= 256 and bool((values.astype(np.float16) == values).all())


def _check(path: Path, module: nn.Module, example: tuple[Tensor, ...], outputs: Sequence[str], regions: int) -> None:
    """Compare the written graph with torch, with other batch sizes and beams than it was traced with.

    regions: so many places come before those of tags, whose order says nothing: two of nearly the same probability
    may have changed theirs.
    """
    tolerance = TOLERANCES.get(path.stem, TOLERANCE)
    core = ov.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for rows in (2, 1):
        inputs = tuple(t[:rows] for t in example)
        with torch.inference_mode():
            expected = [t.numpy() for t in module(*inputs)]
        results = compiled([t.numpy() for t in inputs])
        for name, value in zip(outputs, expected, strict=True):
            possible = value > -1e3  # words that may not be said stand at -1e4 and would drown all others
            if not np.array_equal(possible, results[name] > -1e3):
                raise ExportError(f"{path.stem}: output {name} forbids other words than torch's; nothing was written")
            mine, theirs = (_sorted_tags(name, each, regions)[possible] for each in (results[name], value))
            error = _rms(mine - theirs) / max(_rms(theirs), 1e-6)
            log.info("%s, batch %d, %s: relative error %.5f", path.stem, rows, name, error)
            if not error <= tolerance:  # also where it is not a number
                raise ExportError(f"{path.stem}: output {name} is off torch's by {error:.1%}; nothing was written")


def _save_once(captioner: Captioner, folder: Path, graphs: Sequence[Path]) -> None:
    """Save `captioner` in `folder`, with all that `graphs` (.xml) hold: they read it from the file of the weights.

    Most of it are the captioner's own matrices; the rest goes into the file beside them. The graphs' .bin go.
    """
    metrics = open_checkpoint(folder).metrics
    save_captioner(captioner, folder, metrics)
    weights = (folder / WEIGHTS).read_bytes()
    trees = {path: ET.parse(path) for path in graphs}
    values: dict[Path, list[bytes]] = {}  # of each graph's constants
    for path, tree in trees.items():
        own = path.with_suffix(".bin").read_bytes()
        values[path] = [own[start : start + size] for start, size in map(_place, _constants(tree))]
    rest = dict.fromkeys(value for mine in values.values() for value in mine if _find(weights, value) is None)
    padded = b"".join(value + bytes(-len(value) % _ALIGNMENT) for value in rest)
    save_captioner(captioner, folder, metrics, padded or bytes(_ALIGNMENT))
    weights = (folder / WEIGHTS).read_bytes()
    for path, tree in trees.items():
        for constant, value in zip(_constants(tree), values[path], strict=True):
            constant.set("offset", str(_find(weights, value)))
        tree.write(path, encoding="utf-8", xml_declaration=True)
        path.with_suffix(".bin").unlink()


def _constants(tree: ET.ElementTree[Any]) -> list[ET.Element]:
    """Where a graph's constants say at which byte of the weights they begin and how many they are."""
    constants = (layer.find("data") for layer in tree.iter("layer") if layer.get("type") == "Const")
    return [data for data in constants if data is not None]


def _place(constant: ET.Element) -> tuple[int, int]:
    return int(constant.attrib["offset"]), int(constant.attrib["size"])


def _find(weights: bytes, value: bytes) -> int | None:
    """The first byte of `value` in a file, where it lies as its numbers must."""
    alignment = min(len(value) & -len(value), _ALIGNMENT) or 1
    at = weights.find(value)
    while at >= 0 and at % alignment:
        at = weights.find(value, at + 1)
    return at if at >= 0 else None


def _sorted_tags(name: str, value: NDArray[np.float32], regions: int) -> NDArray[np.float32]:
    """Keys (B, heads, d, L + M) or values (B, heads, L + M, d) with each number's M of the tags in order of size."""
    axis = {"keys": 3, "values": 2}.get(name)
    if axis is None:
        return value
    of_regions, of_tags = np.split(value, [regions], axis)
    return np.concatenate([of_regions, np.sort(of_tags, axis)], axis)


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
