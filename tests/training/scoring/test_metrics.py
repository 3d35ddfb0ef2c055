from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu

from training.scoring import metrics
from training.scoring.metrics import (
    MetricError,
    Report,
    expected_calibration_error,
    in_latin_letters,
    repeats_bigram,
    require_java,
    score,
)

REFERENCES = [
    ["A brown dog runs through the grass .", "A dog running on grass", "The dog is running ."],
    ["Two men climb a rock wall .", "Two climbers on a wall"],
    ["A girl in a red dress jumps over a puddle .", "Little girl jumping over the water ."],
]


@pytest.fixture(scope="module")
def report() -> Report:
    captions = ["A dog runs through the grass.", "A man climbs a rock.", "A girl in a girl in a dress."]
    return score(captions, REFERENCES, resamples=200)


def test_scores_are_percent_and_between_their_bounds(report: Report) -> None:
    assert tuple(report.scores) == metrics.SCORES
    assert all(0 < value < 100 for name, value in report.scores.items() if name != "CIDEr")
    assert report.scores["BLEU-1"] > report.scores["BLEU-2"] > report.scores["BLEU-3"] > report.scores["BLEU-4"]
    for name in ("CIDEr", "ROUGE-L"):
        assert report.per_picture[name].mean() == pytest.approx(report.scores[name])


def test_variety_of_the_captions(report: Report) -> None:
    assert report.distinct == 3
    assert report.mean_length == pytest.approx((6 + 5 + 8) / 3)
    assert report.vocabulary == 12  # a dog runs through the grass, man climbs rock, girl in dress
    assert report.repeated_bigrams == pytest.approx(100 / 3)


def test_tokens_are_lower_case_words_without_punctuation(report: Report) -> None:
    assert report.tokens[0] == ["a", "dog", "runs", "through", "the", "grass"]
    assert report.reference_tokens[1][1] == ["two", "climbers", "on", "a", "wall"]


def test_intervals_enclose_the_score(report: Report) -> None:
    for name, (low, high) in report.intervals.items():
        assert low <= report.scores[name] <= high
        assert low < high


def test_odd_line_breaks_and_empty_texts_keep_their_places() -> None:
    texts = ["", "A dog\u2028runs\nthrough\x85the\x0bgrass", "\n", "a cat", ""]
    assert metrics.tokenize(texts) == ["", "a dog runs through the grass", "", "a cat", ""]


def test_perfect_and_empty_captions() -> None:
    report = score([REFERENCES[0][0], "", REFERENCES[2][1]], REFERENCES, resamples=50)
    for name in ("METEOR", "ROUGE-L"):
        assert report.per_picture[name] == pytest.approx([100, 0, 100], abs=1e-3)
    assert report.per_picture["CIDEr"][1] == 0 < min(report.per_picture["CIDEr"][[0, 2]])
    assert report.scores["BLEU-4"] < 100  # too short in all, though every word is right
    assert report.distinct == 3


@given(
    st.lists(
        st.tuples(*[st.lists(st.sampled_from("abcde"), min_size=4, max_size=9).map(" ".join)] * 3),
        min_size=1,
        max_size=5,
    )
)
def test_bleu_from_counts_is_pycocoevalcaps(rows: list[tuple[str, str, str]]) -> None:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for candidate, *references in rows:
        scorer += (candidate, references)
    counts = np.array([metrics._bleu_counts(entry) for entry in scorer.ctest], np.float64)
    results = {i: [row[0]] for i, row in enumerate(rows)}
    truth = {i: list(row[1:]) for i, row in enumerate(rows)}
    bleu, _ = Bleu(4).compute_score(truth, results, verbose=0)
    assert float(metrics.bleu_of(counts.sum(0))) == pytest.approx(bleu[3])


def test_java_missing_is_a_clear_error_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MetricError, match=r"needs Java.*install"):
        require_java()
    stub = tmp_path / "java"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(MetricError, match="no working `java`"):
        score(["a dog"], [["a dog"]])


@pytest.mark.parametrize(("captions", "references"), [([], []), (["a"], []), (["a"], [[]])])
def test_a_picture_without_reference_is_refused(captions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        score(captions, references)


def test_calibration_error_of_a_sure_and_wrong_model_is_its_sureness() -> None:
    assert expected_calibration_error([0.9] * 10, [False] * 10) == pytest.approx(0.9)
    assert expected_calibration_error([0.75] * 8, [True] * 6 + [False] * 2) == pytest.approx(0)
    # Over- and underconfidence in different bins do not cancel; in one bin they do.
    assert expected_calibration_error([0.2, 0.8], [True, False]) == pytest.approx(0.8)
    assert expected_calibration_error([0.2, 0.8], [True, False], bins=1) == pytest.approx(0)


@given(st.integers(0, 2**32 - 1))
def test_calibration_error_of_honest_probabilities_is_small(seed: int) -> None:
    generator = np.random.default_rng(seed)
    p = generator.random(20_000)
    error = expected_calibration_error(p, generator.random(20_000) < p)
    assert 0 <= error < 0.03


@pytest.mark.parametrize(("p", "right"), [([], []), ([0.5], [True, False]), ([1.5], [True])])
def test_calibration_error_refuses_nonsense(p: list[float], right: list[bool]) -> None:
    with pytest.raises(ValueError, match=r"vectors|\[0, 1\]"):
        expected_calibration_error(p, right)


def test_repeated_bigrams() -> None:
    assert repeats_bigram(["a", "dog", "and", "a", "dog"])
    assert not repeats_bigram(["a", "dog", "a", "cat"])
    assert not repeats_bigram([])


def test_letters_in_two_parts_are_the_same_letters() -> None:
    assert metrics.tokenize(["Ein Ma\u0308dchen la\u0308uft."]) == ["ein mädchen läuft"]


def test_latin_letters_are_told_from_others() -> None:
    assert in_latin_letters(["A dog at the 寿司 bar", "Ein Mädchen läuft über die Straße", "Một con chó"])
    for text in ("一只狗", "एक कुत्ता", "ชายคนหนึ่ง", "собака бежит", "كلب يجري"):
        assert not in_latin_letters([text])


def test_captions_in_other_letters_are_scored_by_their_words_and_characters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where Java's locale knows ASCII alone: METEOR must tell 猫 from 狗."""
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.delenv("LANG", raising=False)
    report = score(["一只黑狗在跑。", "猫"], [["一只黑狗在跑"], ["狗"]], resamples=10)
    assert report.tokens == [[*"一只黑狗在跑"], ["猫"]]
    assert report.reference_tokens == [[[*"一只黑狗在跑"]], [["狗"]]]
    assert "not in Latin letters" in caplog.text
    first, second = report.per_picture["METEOR"]
    assert first > 90
    assert second == 0
    assert report.per_picture["ROUGE-L"].tolist() == [100, 0]
