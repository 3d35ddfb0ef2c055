from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.captioner import Captioner
from model.config import SearchConfig
from model.search import find_hypotheses
from model.vocabulary import words_of
from tests.training import tiny
from training import objectives
from training.batching import padded
from training.config import TrainConfig
from training.objectives import likelihood_loss, memory_of
from training.scoring.cider import CiderD
from training.validation import best_epoch, evaluate


def test_validation_is_free_running_search_scored_by_source(captioner: Captioner) -> None:
    captions = [["a red circle above a blue square", "a circle"], ["a green triangle left of a red square"]] * 3
    features = tiny.feature_set(captions)
    noise = np.random.default_rng(0).normal(size=features.data.shape).astype(np.float16)
    features = replace(features, data=noise)
    config, search_config = TrainConfig(precision="fp32", captions_per_picture=2), SearchConfig(max_length=6)
    captioner.train()
    result = evaluate(captioner, features, search_config, config)
    assert not captioner.training
    with torch.no_grad():
        of = memory_of(captioner, torch.from_numpy(noise[:, 0]), 9)
        found = find_hypotheses(objectives.TorchStepper(captioner.decoder, of), search_config)
        words = padded([[captioner.vocabulary.encode(c) for c in (mine * 2)[:2]] for mine in captions])
        loss = likelihood_loss(captioner, of, words, 0.0)
    assert result.captions == [captioner.vocabulary.decode(mine[0].words) for mine in found]
    assert result.loss == pytest.approx(float(loss), rel=1e-4)
    assert list(result.cider) == ["others", "shapes"]  # in the order of the data
    for source, rows in (("others", (0, 2, 4)), ("shapes", (1, 3, 5))):
        scorer = CiderD([[words_of(c) for c in captions[r]] for r in rows])
        expected = 100 * scorer.score([result.captions[r] for r in rows], range(3)).mean()
        assert result.cider[source] == pytest.approx(expected)
    loops = [len({*itertools.pairwise(words)}) < len(words) - 1 for words in result.captions]
    assert result.repeated == pytest.approx(np.mean(loops))


def test_the_validation_loss_is_of_whole_captions(captioner: Captioner) -> None:
    features = tiny.feature_set([["a red circle above a blue square"]] * 2)
    losses = [
        evaluate(captioner, features, SearchConfig(max_length=6), TrainConfig(precision="fp32", max_words=most)).loss
        for most in (3, 20)
    ]
    assert losses[0] == pytest.approx(losses[1])


def test_the_best_epoch_of_a_history_without_scores_is_the_first_sets() -> None:
    history = [{"val_cider": {"a": a, "b": -a}} for a in (1.0, 3.0, 2.0)]
    assert best_epoch(history) == history[1]
    assert best_epoch([{**epoch, "score": -i} for i, epoch in enumerate(history)])["val_cider"]["a"] == 1.0
