import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model.errors import CheckpointError
from model.neighbours import ORDERS, Neighbours, hash_ngrams
from training.scoring.cider import CiderD

CAPTIONS = [
    [[4, 5, 6, 7], [4, 5, 6, 8]],
    [[4, 5, 6, 7, 9], [10, 11, 5]],
    [[12, 13, 14, 15], [12, 13, 14, 16]],
    [[12, 13, 14, 15, 9], [4, 13, 16, 12]],
]
FEATURES = np.array([[1, 0.1], [0.9, 0.3], [0.1, 1], [0.2, 0.9]], np.float32)


def hashes_of(sentence: Sequence[int], order: int) -> list[int]:
    """The hashes of a sentence's n-grams of one order."""
    groups, hashes = hash_ngrams([sentence])
    return [int(gram) for gram in hashes[groups == order - 1]]


@pytest.fixture
def neighbours() -> Neighbours:
    return Neighbours.build(FEATURES, CAPTIONS)


def test_the_nearest_are_those_in_the_same_direction(neighbours: Neighbours) -> None:
    assert set(neighbours.nearest(np.array([2, 0.5], np.float32), 2)) == {0, 1}
    assert set(neighbours.nearest(np.array([0.1, 0.3], np.float32), 2)) == {2, 3}
    assert len(neighbours.nearest(np.array([1, 1], np.float32), 20)) == 4


def test_consensus_prefers_what_people_said_of_similar_pictures(neighbours: Neighbours) -> None:
    candidates = [[4, 5, 6, 7], [12, 13, 14, 15]]
    first = neighbours.consensus(np.array([1, 0], np.float32), candidates, 2)
    second = neighbours.consensus(np.array([0, 1], np.float32), candidates, 2)
    assert first[0] > first[1]
    assert second[1] > second[0]


def test_consensus_is_the_mean_cider_against_the_neighbours_captions() -> None:
    """Where lengths agree and no word is said twice CIDEr-D's extras change nothing."""
    rng = np.random.default_rng(0)
    # No n-gram of one picture alone: pictures come in pairs that share their captions.
    sentences = [[[int(w) for w in rng.choice(9, 5, replace=False) + 4] for _ in range(3)] for _ in range(6)]
    captions = [mine for mine in sentences for _ in range(2)]
    features = rng.normal(size=(len(captions), 8)).astype(np.float32)
    index = Neighbours.build(features, captions)
    candidates = [mine[0] for mine in sentences[:4]]
    near = index.nearest(features[0], 4)
    pooled = [caption for place in near for caption in captions[place]]
    expected = CiderD([pooled] * len(candidates), documents=captions).score(candidates, range(len(candidates)))
    found = index.consensus(features[0], candidates, 4)
    assert found == pytest.approx(expected, abs=0.05)  # weights are kept in 8 bits
    assert np.argmax(found) == np.argmax(expected)


def test_it_holds_no_ngram_of_one_picture_alone(neighbours: Neighbours) -> None:
    assert not np.isin(hashes_of([10, 11], order=2), neighbours.hashes).any()
    assert np.isin(hashes_of([4, 5, 6], order=3), neighbours.hashes).all()


def test_ngrams_of_different_words_or_orders_differ() -> None:
    seen = [int(gram) for a in range(4, 40) for b in range(4, 40) for gram in hashes_of([a, b], order=2)]
    assert len(set(seen)) == len(seen)
    assert [len(hashes_of([4, 5, 6], order)) for order in (1, 2, 3, 4)] == [3, 2, 1, 0]
    assert hashes_of([7], order=1) != hashes_of([7, 7], order=2)


def test_hashes_are_those_in_the_files_of_releases() -> None:
    groups, hashes = hash_ngrams([[5, 9], [7]])
    found = sorted(zip(groups.tolist(), hashes.tolist(), strict=True))
    assert found == [(0, 815307824), (0, 3618035346), (1, 524484761), (4, 1889954218)]


def test_sentences_are_hashed_together_as_each_alone() -> None:
    sentences = [[4, 5, 6, 7, 4, 5], [], [9], [4, 5, 6]]
    groups, hashes = hash_ngrams(sentences)
    for i, sentence in enumerate(sentences):
        alone, mine = hash_ngrams([sentence])
        assert (groups[groups // ORDERS == i] - ORDERS * i).tolist() == alone.tolist()
        assert hashes[groups // ORDERS == i].tolist() == mine.tolist()


def test_consensus_is_that_of_each_candidate_alone(neighbours: Neighbours) -> None:
    candidates, feature = [[4, 5, 6, 7], [], [99, 98], [12, 13, 4, 4], [4]], np.array([1, 0.5], np.float32)
    together = neighbours.consensus(feature, candidates, 3)
    assert together == pytest.approx([float(neighbours.consensus(feature, [one], 3)[0]) for one in candidates])
    assert together[0] > together[3] > 0
    assert together[1] == together[2] == 0


def test_what_is_written_is_read(neighbours: Neighbours, tmp_path: Path) -> None:
    neighbours.save(tmp_path / "n.npz")
    again = Neighbours.read(tmp_path / "n.npz")
    feature = np.array([1, 0.5], np.float32)
    candidates = [[4, 5, 6, 7], [12, 13, 14, 15], [], [99]]
    assert again.consensus(feature, candidates, 3) == pytest.approx(
        neighbours.consensus(feature, candidates, 3), rel=1e-3
    )
    assert math.isclose(again.unseen, math.log(4))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "n.npz").write_bytes(b"PK not really")
    with pytest.raises(CheckpointError, match="damaged"):
        Neighbours.read(tmp_path / "n.npz")
