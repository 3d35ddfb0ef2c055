from __future__ import annotations

import inspect
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import model.search
from model.caption import Caption
from model.checkpoint import CONFIG, digest, open_checkpoint, save_captioner
from model.config import SearchConfig
from model.errors import CheckpointError
from model.runtime import load_engine, openvino_search
from model.runtime.engine import Lane, Precision
from model.runtime.openvino_engine import MAX_OTHER_SEARCHES, SEVERAL, OpenVINOEngine, OpenVINOLane, OpenVINOStepper
from model.search import beam_search
from tests.model.tiny import captioner, pictures
from tests.training.shapes import draw_pair
from training.finishing.export import export

EMBEDDED = Path(__file__).parents[3] / "model" / "weights" / "default"
with_embedded = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="no embedded model in this checkout")
# Packages that serving on a CPU must not import: each costs time or memory, or is not installed there.
HEAVY = ("torch", "torchvision", "scipy", "pandas", "matplotlib", "safetensors", "tensorboard", "nncf", "sympy")


def agreement(folder: Path, pixels: NDArray[np.uint8], tolerance: float) -> float:
    """The share of pictures with the same greedy caption in float32; their log-probabilities are compared too."""
    ours, theirs = (load_engine(folder, "cpu", name, precision="f32") for name in ("openvino", "torch"))
    same = 0
    for start in range(0, len(pixels), 25):
        some = pixels[start : start + 25]
        found = [engine.caption(some, SearchConfig(beam_size=1)) for engine in (ours, theirs)]
        for (a, *_), (b, *_) in zip(*found, strict=True):
            if a.text == b.text:
                same += 1
                assert a.log_probability == pytest.approx(b.log_probability, abs=tolerance)
    return same / len(pixels)


def test_agrees_with_torch_on_100_pictures(checkpoint: Path) -> None:
    assert agreement(checkpoint, pictures(100, seed=1), tolerance=0.01) >= 0.98


@pytest.mark.parametrize(
    "decoder",
    [{"sentinel": True, "layers": 1}, {"attention_heads": 0}, {"sentinel": True, "tag_slots": 3}],
    ids=["one", "plain", "tags"],
)
def test_other_decoders_agree_with_torch_and_explain_themselves(decoder: dict[str, Any], tmp_path: Path) -> None:
    save_captioner(captioner(**decoder), tmp_path / "one", {})
    export(tmp_path / "one")
    pixels = pictures(20, seed=2)
    assert agreement(tmp_path / "one", pixels, tolerance=0.01) >= 0.95
    ours, theirs = (load_engine(tmp_path / "one", "cpu", name, precision="f32") for name in ("openvino", "torch"))
    words = 0
    for found in zip(*(engine.caption(pixels, explain=True) for engine in (ours, theirs)), strict=True):
        (a, *_), (b, *_) = found
        for x, y in zip(a.tokens, b.tokens, strict=True) if a.text == b.text else ():
            assert x.explanation is not None
            assert y.explanation is not None
            if "attention_heads" in decoder:
                assert x.explanation.attention is y.explanation.attention is None
            else:
                np.testing.assert_allclose(x.explanation.attention, y.explanation.attention, atol=0.002)
                assert x.explanation.tags == pytest.approx(y.explanation.tags, abs=0.002)
                assert (x.explanation.tags > 0) == ("tag_slots" in decoder)
                assert x.explanation.attention is not None
                looked = x.explanation.attention.sum() + x.explanation.tags + x.explanation.sentinel
                assert looked == pytest.approx(1, abs=1e-3)
            for mine, other in zip(x.explanation.layers, y.explanation.layers, strict=True):
                assert mine == pytest.approx(other, abs=0.002)
            words += 1
    assert words > 20


@with_embedded
def test_agrees_with_torch_on_50_pictures_with_the_embedded_model() -> None:
    size = open_checkpoint(EMBEDDED).config.preprocess.size
    drawn = [np.asarray(draw_pair(random.Random(i), size)[0]) for i in range(50)]
    assert agreement(EMBEDDED, np.stack(drawn), tolerance=0.02) >= 0.98


@pytest.mark.parametrize(
    ("precision", "near"),
    [("f32", 0.002), pytest.param("auto", 0.1, marks=with_embedded)],  # 8-bit weights: still the same look of things
)
def test_explains_like_torch(precision: Precision, near: float, checkpoint: Path) -> None:
    folder = checkpoint if precision == "f32" else EMBEDDED
    ours = load_engine(folder, "cpu", "openvino", precision=precision)
    theirs = load_engine(folder, "cpu", "torch", precision="f32")
    pixels = np.stack([ours.preprocess(draw_pair(random.Random(i), 224)[0]) for i in range(12)])
    compared = 0
    for found in zip(
        *(e.caption(pixels, SearchConfig(beam_size=1), explain=True) for e in (ours, theirs)), strict=True
    ):
        (a, *_), (b, *_) = found
        if a.text != b.text:
            continue
        for x, y in zip(a.tokens, b.tokens, strict=True):
            assert x.probability == pytest.approx(y.probability, abs=near)
            assert x.explanation is not None
            assert y.explanation is not None
            np.testing.assert_allclose(x.explanation.attention, y.explanation.attention, atol=near)
            assert x.explanation.sentinel == pytest.approx(y.explanation.sentinel, abs=near)
            for mine, other in zip(x.explanation.layers, y.explanation.layers, strict=True):
                assert mine == pytest.approx(other, abs=near)
            compared += 1
    assert compared > 20


SEARCHES = [
    SearchConfig(beam_size=3),
    SearchConfig(beam_size=1),
    SearchConfig(beam_size=1, num_captions=4, length_penalty=0.0),
    SearchConfig(beam_size=4, num_captions=2, length_penalty=0.7, max_length=3),
    SearchConfig(beam_size=5, num_captions=3, length_penalty=1.0, max_length=20),
    SearchConfig(beam_size=2, max_length=1),
    SearchConfig(beam_size=10, num_captions=5, max_length=50, length_penalty=2.0),
    *(SearchConfig(beam_size=3, block_ngram=n, length_penalty=0.0) for n in (0, 1, 2, 3, 60)),
]


@pytest.mark.parametrize(
    "search_config", SEARCHES, ids=lambda s: f"{s.beam_size}-{s.num_captions}-{s.max_length}-{s.block_ngram}"
)
def test_the_graph_searches_as_the_definition_does(search_config: SearchConfig, checkpoint: Path) -> None:
    engine = load_engine(checkpoint, "cpu", "openvino", threads=1, precision="f32")
    assert isinstance(engine, OpenVINOEngine)
    [lane] = engine.lanes
    regions = engine.encode(pictures(43, seed=3))
    expected = beam_search(OpenVINOStepper(lane.step, regions), search_config)
    found = lane.find(regions, search_config)
    found[:2] = lane.find(regions.select([0]), search_config) + lane.find(regions.select([1]), search_config)
    assert {shape.pictures for shape in lane._searches} == {1, SEVERAL}
    assert engine.searched_at_once == SEVERAL
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert [h.words for h in mine] == [h.words for h in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
    assert len({mine[0].words for mine in found}) > (3 if search_config.max_length > 1 else 0)


@pytest.mark.parametrize("embedded", [False, pytest.param(True, marks=with_embedded)], ids=["tiny", "embedded"])
def test_fewer_captions_are_the_first_of_more(checkpoint: Path, embedded: bool) -> None:
    engine = load_engine(EMBEDDED if embedded else checkpoint, "cpu", "openvino", threads=1, precision="f32")
    assert isinstance(engine, OpenVINOEngine)
    engine.reranker = None  # the search's own order
    drawn = [np.asarray(draw_pair(random.Random(i), engine.config.preprocess.size)[0]) for i in range(6)]
    [lane], regions = engine.lanes, engine.encode(np.stack(drawn) if embedded else pictures(43, seed=3))
    search_config = SearchConfig(beam_size=5, length_penalty=2.0, max_length=20)  # long captions overtake
    most = lane.find(regions, replace(search_config, num_captions=5))
    for count in range(1, 5):
        assert lane.find(regions, replace(search_config, num_captions=count)) == [found[:count] for found in most]
    # A longer caption with a better score is behind one that was final before: what the rule is about.
    assert not embedded or any(a.score < b.score for found in most for a, b in itertools.pairwise(found))


def test_each_step_of_the_graph_names_lines_of_the_definition() -> None:
    """And no line that is not there."""
    definition = {line.strip() for line in inspect.getsource(model.search).splitlines()}
    named = 0
    for function in vars(openvino_search).values():
        if not (inspect.isfunction(function) and function.__module__ == openvino_search.__name__ and function.__doc__):
            continue
        quoted = [line.strip() for line in function.__doc__.splitlines() if line.startswith("        ")]
        assert set(quoted) <= definition
        named += bool(quoted)
    assert named >= 5


def test_the_searches_compared_block_something(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, "cpu", "openvino", threads=1, precision="f32")
    pixels = pictures(43, seed=3)
    texts = []
    for n in range(4):
        found = engine.caption(pixels, SearchConfig(beam_size=3, block_ngram=n, length_penalty=0.0))
        texts.append(tuple(mine[0].text for mine in found))
    assert len(set(texts)) == 4


@with_embedded
def test_the_embedded_model_searches_as_the_definition_does() -> None:
    engine = load_engine(EMBEDDED, "cpu", "openvino", threads=1, precision="f32")
    assert isinstance(engine, OpenVINOEngine)
    drawn = [np.asarray(draw_pair(random.Random(i), engine.config.preprocess.size)[0]) for i in range(25)]
    regions = engine.encode(np.stack(drawn))
    [lane] = engine.lanes
    engine.reranker = None  # the search's own order
    for search_config in (engine.config.search, SearchConfig(beam_size=3, num_captions=3, length_penalty=0.5)):
        found, expected = (
            lane.find(regions, search_config),
            beam_search(OpenVINOStepper(lane.step, regions), search_config),
        )
        assert [[h.words for h in mine] for mine in found] == [[h.words for h in mine] for mine in expected]


def test_few_other_beam_sizes_have_a_graph_and_all_are_searched(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, "cpu", "openvino", threads=2, precision="f32")
    assert isinstance(engine, OpenVINOEngine)
    lane, regions, own = engine.lanes[0], engine.encode(pictures(2)), engine.config.search.beam_size
    for beam_size in (1, 2, 3, 4, 5, 6, 7):
        search_config = SearchConfig(beam_size=beam_size)
        expected = beam_search(OpenVINOStepper(lane.step, regions), search_config)
        assert [mine[0].words for mine in lane.find(regions, search_config)] == [mine[0].words for mine in expected]
    others = [beam_size for beam_size in range(1, 8) if beam_size != own]
    assert {shape.hypotheses for shape in lane._searches} == {own, *others[: MAX_OTHER_SEARCHES // 2]}


def test_pictures_left_over_are_searched_without_a_graph(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.runtime.openvino_engine.MAX_OTHER_SEARCHES", 1)
    engine = load_engine(checkpoint, "cpu", "openvino", threads=1, precision="f32")
    assert isinstance(engine, OpenVINOEngine)
    [lane], regions, search_config = engine.lanes, engine.encode(pictures(5)), SearchConfig(beam_size=2)
    assert search_config.beam_size != engine.config.search.beam_size
    expected = beam_search(OpenVINOStepper(lane.step, regions), search_config)
    assert [mine[0].words for mine in lane.find(regions, search_config)] == [mine[0].words for mine in expected]
    assert [shape.pictures for shape in lane._searches] == [SEVERAL]


def test_sampling_needs_no_search_graph(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, "cpu", "openvino", threads=1)
    assert isinstance(engine, OpenVINOEngine)
    assert engine.caption(pictures(1), SearchConfig(strategy="sample", seed=1))[0][0].text
    assert not engine.lanes[0]._searches


def test_pictures_dealt_out_to_threads_get_what_each_gets_alone(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, "cpu", "openvino", threads=3)
    pixels = pictures(23, seed=5)
    alone = [engine.caption(picture[None])[0][0].text for picture in pixels]
    assert [found[0].text for found in engine.caption(pixels)] == alone
    assert len(set(alone)) > 3


@pytest.mark.parametrize(("threads", "shares"), [(1, [1]), (2, [1, 1]), (8, [1] * 8), (11, [2, 2, 2, 1, 1, 1, 1, 1])])
def test_threads_are_dealt_out_to_few_lanes(threads: int, shares: list[int], checkpoint: Path) -> None:
    engine = load_engine(checkpoint, "cpu", "openvino", threads=threads)
    assert isinstance(engine, OpenVINOEngine)

    def threads_of(lane: OpenVINOLane) -> int:
        return int(lane.encoder.get_compiled_model().get_property("INFERENCE_NUM_THREADS"))

    available = len(os.sched_getaffinity(0))  # OpenVINO takes no more than there are
    assert [threads_of(lane) for lane in engine.lanes] == [min(share, available) for share in shares]
    assert (engine.lanes[0].encoder is engine.encoder) == (threads == 1)


def test_warming_up_compiles_all_graphs_side_by_side(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(checkpoint, "cpu", threads=2)
    assert isinstance(engine, OpenVINOEngine)
    together, compile = threading.Barrier(3), engine._compile  # the lone picture's encoder, and each lane's first
    compiled: list[int] = []

    def meet(*arguments: Any) -> Any:
        compiled.append(threading.get_ident())
        if len(compiled) <= together.parties:
            together.wait(30)
        return compile(*arguments)

    monkeypatch.setattr(engine, "_compile", meet)
    engine.warm_up()
    assert len(compiled) == 1 + len(engine.lanes) * 3 == 7  # and nothing more for the pictures that follow
    assert len(set(compiled)) == 3


def test_for_lone_pictures_no_more_is_compiled_than_they_need(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(checkpoint, "cpu", threads=2)
    assert isinstance(engine, OpenVINOEngine)
    compiled, compile = [], engine._compile

    def count(*arguments: Any) -> Any:
        compiled.append(arguments)
        return compile(*arguments)

    monkeypatch.setattr(engine, "_compile", count)
    engine.warm_up((1,))
    lone = 1 + len(engine.lanes)  # an encoder, and for each lane a search, as any of them may take the picture
    assert len(compiled) == lone
    (one,) = pictures(1)
    for lane in engine.lanes:
        lane.generate(engine.encode(one[None]))
    assert len(compiled) == lone
    engine.lanes[0].encode(one[None])  # as beside another
    assert len(compiled) == lone + 1


def test_lanes_work_side_by_side_explaining_or_not(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, "cpu", "openvino", threads=3)
    pixels = pictures(12)
    search_config = SearchConfig(num_captions=2, max_length=6)
    expected = engine.caption(pixels, search_config, explain=True)

    def caption(lane: Lane, rows: range, explain: bool) -> list[list[Caption]]:
        regions = [lane.encode(pixels[row : row + 1]) for row in rows]
        return lane.generate(regions[0].join(regions), search_config, explain)

    with ThreadPoolExecutor(3) as pool:
        for explain in (True, False):
            parts = pool.map(caption, engine.lanes, (range(4), range(4, 8), range(8, 12)), [explain] * 3)
            found = [mine for part in parts for mine in part]
            for mine, theirs in zip(found, expected, strict=True):
                assert [caption.text for caption in mine] == [caption.text for caption in theirs]
                for token, other in zip(mine[0].tokens, theirs[0].tokens, strict=True):
                    assert (token.explanation is not None) == explain
                    if token.explanation and other.explanation:
                        np.testing.assert_allclose(token.explanation.attention, other.explanation.attention, atol=1e-4)


def test_serving_imports_nothing_heavy(checkpoint: Path, tmp_path: Path) -> None:
    """A whole caption, explained, in a process of its own: what it has imported by then is all that serving needs."""
    Image.fromarray(pictures(1)[0]).save(tmp_path / "picture.png")
    program = """
import json, sys
from pathlib import Path
from PIL import Image
from model.config import SearchConfig
from model.runtime import load_engine
engine = load_engine(Path(sys.argv[1]), "cpu")
pixels = engine.preprocess(Image.open(sys.argv[2]))[None]
caption = engine.caption(pixels, SearchConfig(num_captions=2), explain=True)[0][0]
sample = engine.caption(pixels, SearchConfig(strategy="sample", seed=0))[0][0]
print(json.dumps({"text": caption.text, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint), str(tmp_path / "picture.png")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["text"].endswith(".")
    assert "openvino" in answer["modules"]
    assert not set(HEAVY) & set(answer["modules"])


def test_a_damaged_graph_is_a_clear_error(checkpoint: Path, tmp_path: Path) -> None:
    """Even where its digest fits, as after a bad export."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    graph = folder / "graphs" / "encoder.xml"
    graph.write_text("<net/>")
    content = json.loads((folder / CONFIG).read_text())
    content["files"]["graphs/encoder.xml"] = digest(graph)
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"(?s)encoder\.xml cannot be read .*; export it again"):
        load_engine(folder, "cpu", "openvino")
