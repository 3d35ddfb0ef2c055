from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.onnx_engine import Arrays, Graph, OnnxStepper, graphs
from model.config import SearchConfig
from model.runtime.openvino_engine import OpenVINORegions
from model.runtime.torch_engine import TorchStepper
from model.search import find_hypotheses
from tests.model import tiny


class Torch:
    """A session that lets torch compute what is exported."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @torch.no_grad()
    def run(self, outputs: Sequence[str] | None, given: Arrays) -> list[NDArray[np.float32]]:
        assert given.keys() == self.graph.inputs.keys()
        for name, values in given.items():
            example, varying = self.graph.inputs[name], self.graph.varying.get(name, {})
            assert torch.from_numpy(values).dtype == example.dtype
            assert all(values.shape[i] == n for i, n in enumerate(example.shape) if i not in varying)
        made = self.graph.module(*(torch.tensor(given[name]) for name in self.graph.inputs))
        names = outputs or self.graph.outputs
        return [values.numpy() for _, values in zip(names, made, strict=False)]


@pytest.mark.parametrize("attends", [True, False])
def test_the_exported_graphs_are_searched_as_torch_is(attends: bool) -> None:
    captioner = tiny.captioner() if attends else tiny.captioner(attention_heads=0)
    exported = graphs(captioner)
    pixels = tiny.pictures(3)
    encoder = Torch(exported["encoder"])
    encoded = []
    for picture in pixels:
        memory = dict(zip(exported["encoder"].outputs, encoder.run(None, {"pixels": picture[None]}), strict=True))
        nothing = np.zeros((1, 0), np.float32)
        encoded.append(OpenVINORegions(memory, memory.pop("feature", nothing), memory.pop("tags", nothing)))
    regions = OpenVINORegions.join(encoded)
    step = exported["step"]
    search = SearchConfig(beam_size=3, max_length=8)
    found = find_hypotheses(OnnxStepper(Torch(step), regions, step.inputs["state"].shape[-1]), search)
    with torch.no_grad():
        seen = captioner.encode(torch.from_numpy(pixels))
        expected = find_hypotheses(TorchStepper(captioner.decoder, seen, captioner.config.temperature), search)
    assert [[h.words for h in mine] for mine in found] == [[h.words for h in mine] for mine in expected]
    assert len({h.words for mine in found for h in mine}) > 1
