from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.caption import Caption, Token
from model.captioner import Captioner
from model.config import RerankConfig
from model.rerank import Reranker
from model.search import Hypothesis
from tests.training import tiny
from training.data import CaptionData
from training.finishing import rerank


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("rerank"))


@pytest.fixture(scope="module")
def captioner(data: CaptionData) -> Captioner:
    return tiny.captioner(data).eval()


def test_a_picture_that_cannot_be_decoded_is_left_out(captioner: Captioner, data: CaptionData, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG but no more")
    pictures = data.split("train")[:3]
    pictures[1] = replace(pictures[1], path=broken, offset=0, size=16)
    sound, features = rerank.pooled(captioner, pictures, tmp_path / "cache")
    assert sound == [pictures[0], pictures[2]]
    assert features.shape == (2, captioner.encoder.channels)
    both, all_at_once = rerank.pooled(captioner, sound, tmp_path / "another")
    np.testing.assert_allclose(all_at_once, features, rtol=1e-4)
    assert both == sound


def test_a_feature_keeps_the_directions_in_which_pictures_differ() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 12)).astype(np.float32) * np.array([5, 4, 3] + [0.01] * 9, np.float32) + 7
    layer = rerank.fit_feature(features, 3)
    made = rerank.apply(layer, features)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    # Whoever was near is near: the same neighbours as by the three directions themselves, nearly always.
    centred = features[:, :3] - features[:, :3].mean(0)
    centred /= np.array([5, 4, 3], np.float32) ** 0.5
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    nearest = [np.argsort(-(x @ x.T), axis=1)[:, 1] for x in (made, centred)]
    assert (nearest[0] == nearest[1]).mean() > 0.8


def caption(text: str, log_probability: float) -> Caption:
    tokens = tuple(Token(word, 0.5) for word in (*text.split(), "."))
    return Caption(text, log_probability, tokens)


def test_the_chosen_ranking_is_the_best_of_those_tried_and_ranks_as_the_engines_do(
    captioner: Captioner, data: CaptionData, tmp_path: Path
) -> None:
    train, features = rerank.pooled(captioner, data.split("train"), tmp_path)
    layer = rerank.fit_feature(features, 8)
    made = rerank.apply(layer, features)
    neighbours = rerank.index(captioner, made, train)
    texts = [" ".join(p.captions[0].lower().strip(".").split()) for p in train]
    found = [[caption(texts[(i + 5) % len(texts)], -1.0), caption(texts[i], -9.0)] for i in range(len(train))]
    none = np.zeros((len(train), 0), np.float32)
    weighed = rerank.weigh(captioner, neighbours, train, found, made, none, 0.7)
    assert weighed[0].cider[1] > weighed[0].cider[0]  # its own caption
    source = train[0].source
    best, tried = rerank.choose(weighed, [p.source for p in train], {source: 1.0}, RerankConfig(8))
    means = [row["mean"] for row in tried]
    chosen = next(row for row in tried if row["config"] == best)
    assert chosen["mean"] == max(means) > min(means)
    assert chosen["mean"] == pytest.approx(chosen["CIDEr"][source] + chosen["BLEU-4"][source])
    assert best.tags == best.things == 0  # there are none
    alone, *others = rerank.compare(weighed, [p.source for p in train], {source: 1.0}, RerankConfig(8))
    assert (alone["order"], alone["change"], alone["interval"]) == ("the search alone", {source: 0}, {source: [0, 0]})
    for row in others:  # as many witnesses as there are
        assert row["CIDEr"][source] == pytest.approx(chosen["CIDEr"][source], abs=0.01)
        assert row["change"][source] == pytest.approx(row["CIDEr"][source] - alone["CIDEr"][source], abs=0.02)
        assert 0 < row["interval"][source][0] <= row["change"][source] <= row["interval"][source][1]

    ids = {word: i for i, word in enumerate(captioner.vocabulary.words)} | {".": 2}
    ranker = Reranker(best, captioner.vocabulary, (), neighbours)
    for candidates, mine, feature in zip(found, weighed, made, strict=True):
        hypotheses = [
            Hypothesis(tuple(ids[t.text] for t in c.tokens), (0.0,) * len(c.tokens), float(score))
            for c, score in zip(candidates, mine.search, strict=True)
        ]
        assert ranker(hypotheses, feature, none[0])[0] is hypotheses[mine.chosen(best)]
