import math
from pathlib import Path

import numpy as np
import pytest

from model.errors import CheckpointError
from model.neighbours import Neighbours, hash_ngrams
from training.scoring.cider import CiderD

CAPTIONS = [
    [[4, 5, 6, 7], [4, 5, 6, 8]],
    [[4, 5, 6, 7, 9], [10, 11, 5]],
    [[12, 13, 14, 15], [12, 13, 14, 16]],
    [[12, 13, 14, 15, 9], [4, 13, 16, 12]],
]
FEATURES = np.array([[1, 0.1], [0.9, 0.3], [0.1, 1], [0.2, 0.9]], np.float32)


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
    once = hash_ngrams([10, 11])[1]
    assert not np.isin(once, neighbours.hashes).any()
    assert np.isin(hash_ngrams([4, 5, 6])[2], neighbours.hashes).all()


def test_ngrams_of_different_words_or_orders_differ() -> None:
    seen = [int(gram) for a in range(4, 40) for b in range(4, 40) for gram in hash_ngrams([a, b])[1]]
    assert len(set(seen)) == len(seen)
    assert [len(order) for order in hash_ngrams([4, 5, 6])] == [3, 2, 1, 0]
    assert hash_ngrams([7])[0] != hash_ngrams([7, 7])[1]


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
