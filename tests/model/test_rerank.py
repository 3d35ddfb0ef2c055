import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.captioner import Captioner, TagHead
from model.checkpoint import NEIGHBOURS, open_checkpoint, save_captioner, write_config
from model.config import RerankConfig, SearchConfig
from model.errors import CheckpointError
from model.neighbours import Neighbours
from model.rerank import Reranker, agreement, log_odds, support, tag_places
from model.runtime import CaptionEngine, load_engine
from model.search import Hypothesis
from model.vocabulary import END
from tests.model.tiny import VOCABULARY, captioner, pictures
from training.finishing.export import export

DOG, CAT, RUNS, SITS = (VOCABULARY.words.index(word) for word in ("dog", "cat", "runs", "sits"))
TAGS = ("dog", "cat")
SEARCH = SearchConfig(beam_size=4, num_captions=4, max_length=5)


def hypothesis(*words: int, score: float) -> Hypothesis:
    return Hypothesis((*words, END), (score,) * (len(words) + 1), score)


@pytest.fixture
def neighbours() -> Neighbours:
    captions = [[[DOG, RUNS, END]], [[DOG, RUNS, END]], [[CAT, SITS, END]], [[CAT, SITS, END]]]
    return Neighbours.build(np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32), captions)


FOUND = [hypothesis(DOG, RUNS, score=-1.0), hypothesis(CAT, SITS, score=-1.1)]
NO_TAGS = np.zeros(0, np.float32)


def test_the_captions_of_similar_pictures_decide(neighbours: Neighbours) -> None:
    rerank = Reranker(RerankConfig(size=2, neighbours=2, search=0.1), VOCABULARY, (), neighbours)
    assert rerank(FOUND, np.array([1, 0], np.float32), NO_TAGS) == FOUND
    assert rerank(FOUND, np.array([0, 1], np.float32), NO_TAGS) == FOUND[::-1]


def test_with_much_weight_the_search_decides(neighbours: Neighbours) -> None:
    rerank = Reranker(RerankConfig(size=2, neighbours=2, search=1000), VOCABULARY, (), neighbours)
    assert rerank(FOUND, np.array([0, 1], np.float32), NO_TAGS) == FOUND


def test_tags_speak_for_the_captions_that_say_them(neighbours: Neighbours) -> None:
    rerank = Reranker(RerankConfig(size=2, neighbours=4, search=0.0, tags=5.0), VOCABULARY, TAGS, neighbours)
    feature = np.array([1, 0], np.float32)
    assert rerank(FOUND, feature, np.array([0.1, 0.9], np.float32)) == FOUND[::-1]
    assert rerank(FOUND, feature, np.array([0.9, 0.1], np.float32)) == FOUND


def test_agreement_is_the_mean_log_odds_of_the_tags_said() -> None:
    places = tag_places(VOCABULARY, TAGS)
    tags = np.array([0.9, 0.2], np.float32)
    assert agreement([[DOG, RUNS, END], [DOG, CAT, CAT], [RUNS]], places, tags) == pytest.approx(
        [np.log(9), (np.log(9) + np.log(0.25)) / 2, 0], rel=1e-4
    )


def test_things_speak_once_each_and_together(neighbours: Neighbours) -> None:
    config, feature = RerankConfig(size=2, neighbours=4, search=0.0, things=5.0), np.array([1, 0], np.float32)
    tags = np.array([0.4, 0.9], np.float32)
    assert Reranker(config, VOCABULARY, TAGS, neighbours, ("dog", "cat"))(FOUND, feature, tags) == FOUND[::-1]
    assert Reranker(config, VOCABULARY, TAGS, neighbours, ("dog",))(FOUND, feature, tags) == FOUND[::-1]
    assert Reranker(config, VOCABULARY, TAGS, neighbours, ())(FOUND, feature, tags) == FOUND
    assert log_odds([[DOG, RUNS, DOG, END], [DOG, CAT], [RUNS]], tag_places(VOCABULARY, TAGS), tags) == pytest.approx(
        [np.log(0.4 / 0.6), np.log(0.4 / 0.6) + np.log(9), 0], rel=1e-4
    )


def test_support_is_the_probability_of_all_things_that_are_named() -> None:
    places, tags = tag_places(VOCABULARY, TAGS, ["cat", "dog"]), np.array([0.5, 0.2], np.float32)
    assert support([DOG, RUNS, CAT, DOG, END], places, tags) == pytest.approx(0.1)
    assert support([CAT, END], places, tags) == pytest.approx(0.2)
    assert support([RUNS, END], places, tags) is None
    assert support([DOG, CAT, END], tag_places(VOCABULARY, TAGS, ["cat"]), tags) == pytest.approx(0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with tags and an index of blots, exported."""
    plain = captioner()
    config = replace(plain.config, rerank=RerankConfig(size=8, neighbours=3, search=0.1, tags=0.1), tags=TAGS,
                     things=TAGS[1:])  # fmt: skip
    made = Captioner(config, VOCABULARY)
    made.load_state_dict(plain.state_dict(), strict=False)
    torch.manual_seed(1)
    made.tags = TagHead(made.encoder.channels, len(TAGS))
    made.eval()
    with torch.inference_mode():
        features = made.see(torch.from_numpy(pictures(12, seed=9))).feature.numpy()
    rng = np.random.default_rng(0)
    captions = [[rng.integers(4, len(VOCABULARY), 5).tolist() for _ in range(3)] for _ in range(6)]
    folder = tmp_path_factory.mktemp("rerank")
    Neighbours.build(features, [mine for mine in captions for _ in range(2)]).save(folder / NEIGHBOURS)
    save_captioner(made, folder, {})
    export(folder)
    return folder


@pytest.fixture(params=["torch", "openvino"])
def engine(request: pytest.FixtureRequest, folder: Path) -> CaptionEngine:
    return load_engine(folder, "cpu", request.param, precision="f32")


def test_an_engine_ranks_what_its_search_finds(engine: CaptionEngine) -> None:
    regions = engine.encode(pictures(6))
    assert engine.reranker is not None
    ranked = engine.generate(regions, SEARCH)
    kept, engine.reranker = engine.reranker, None
    by_search = engine.generate(regions, SEARCH)
    engine.reranker = kept
    for mine, theirs in zip(ranked, by_search, strict=True):
        assert sorted(c.text for c in mine) == sorted(c.text for c in theirs)
    assert [c.text for mine in ranked for c in mine] != [c.text for mine in by_search for c in mine]


def test_the_first_of_many_is_the_one_of_one(engine: CaptionEngine) -> None:
    regions = engine.encode(pictures(6))
    many, one = engine.generate(regions, SEARCH), engine.generate(regions, replace(SEARCH, num_captions=1))
    assert [mine[0].text for mine in many] == [mine[0].text for mine in one]
    assert all(len(mine) == 1 for mine in one)


def test_sampled_captions_keep_their_order(engine: CaptionEngine) -> None:
    sampled = replace(SEARCH, strategy="sample", num_captions=3, seed=1)
    for mine in engine.caption(pictures(3), sampled):
        scores = [c.log_probability / len(c.tokens) for c in mine]
        assert scores == sorted(scores, reverse=True)


def test_both_engines_see_and_say_the_same(folder: Path) -> None:
    torch_engine, openvino = (load_engine(folder, "cpu", name, precision="f32") for name in ("torch", "openvino"))
    pixels = pictures(6)
    tags = [engine.tags(engine.encode(pixels)) for engine in (torch_engine, openvino)]
    assert tags[0].shape == (6, len(TAGS))
    np.testing.assert_allclose(*tags, atol=2e-3)
    texts = [[c.text for mine in engine.caption(pixels, SEARCH) for c in mine] for engine in (torch_engine, openvino)]
    assert texts[0] == texts[1]


def test_captions_say_how_far_the_tags_support_them(engine: CaptionEngine) -> None:
    regions = engine.encode(pictures(6))
    found = [(b, c) for b, mine in enumerate(engine.generate(regions, SEARCH)) for c in mine]
    tags = engine.tags(regions)
    naming = [(b, c) for b, c in found if "cat" in [token.text for token in c.tokens]]
    assert 0 < len(naming) < len(found)
    for b, caption in naming:
        assert caption.support == caption.reliability == pytest.approx(float(tags[b, 1]), rel=1e-5)
    for _, caption in set(found) - set(naming):
        assert caption.support is None
        assert caption.reliability == caption.confidence


def test_a_batch_is_tagged_as_each_picture_alone(engine: CaptionEngine) -> None:
    pixels = pictures(5)
    together = engine.tags(engine.encode(pixels))
    alone = np.concatenate([engine.tags(engine.encode(picture[None])) for picture in pixels])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert len(np.unique(together.round(4), axis=0)) == 5


def test_an_index_of_another_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / NEIGHBOURS).write_bytes((copy / NEIGHBOURS).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged or of another checkpoint"):
        load_engine(copy, "cpu", "openvino")


def test_writing_the_configuration_keeps_the_index(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    write_config(folder, checkpoint.config, checkpoint.vocabulary, graphs=True)
    assert NEIGHBOURS in open_checkpoint(folder).digests
    assert load_engine(folder, "cpu", "openvino").reranker is not None
