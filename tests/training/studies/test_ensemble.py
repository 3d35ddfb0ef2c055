from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.captioner import Captioner
from model.config import SearchConfig
from model.decoder import Memory
from model.errors import CheckpointError
from model.runtime.torch_engine import TorchStepper
from model.search import find_hypotheses
from model.vocabulary import PAD, START, Vocabulary
from tests.model.tiny import decoder, liven, memory
from tests.training import tiny
from training import features, objectives, validation
from training.augment import AugmentConfig
from training.data import CaptionData
from training.studies import ensemble
from training.studies.ensemble import EnsembleStepper, likelihood_loss


def member(seed: int, batch: int, temperature: float = 1.0) -> TorchStepper:
    made = decoder(seed, cell="gru" if seed % 2 else "lstm", layers=1 + seed % 2, regions=4 + seed)
    return TorchStepper(made, memory(made, batch, seed), temperature)


def steps(stepper: EnsembleStepper | TorchStepper) -> list[Tensor]:
    """Log-probabilities of three steps, in which hypotheses change their parents and a picture leaves."""
    found = [stepper.step(stepper.start(2), None)]
    found.append(stepper.step(torch.tensor([[4, 5], [6, 7], [8, 9]]), torch.tensor([[0, 1], [1, 1], [0, 0]])))
    stepper.keep(torch.tensor([2, 0]))
    found.append(stepper.step(torch.tensor([[5, 6], [7, 8]]), torch.tensor([[1, 0], [0, 0]])))
    return found


@torch.no_grad()
def test_probabilities_are_the_members_mean_each_at_its_own_temperature() -> None:
    members = [(seed, 3, temperature) for seed, temperature in ((0, 1.0), (1, 0.5), (2, 3.0))]
    together = steps(EnsembleStepper([member(*each) for each in members]))
    alone = [steps(member(*each)) for each in members]
    for found, *each in zip(together, *alone, strict=True):
        torch.testing.assert_close(found.exp(), torch.stack(each).exp().mean(0))
        assert (each[0] - each[1]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2])
def test_an_ensemble_of_one_or_of_equals_is_that_one(count: int) -> None:
    of = EnsembleStepper([member(1, 3, 1.5) for _ in range(count)])
    for found, expected in zip(steps(of), steps(member(1, 3, 1.5)), strict=True):
        torch.testing.assert_close(found, expected, atol=0 if count == 1 else 1e-5, rtol=1e-6)


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), beam=st.integers(1, 3))
def test_a_batch_finds_what_each_picture_finds_alone(seed: int, beam: int) -> None:
    """Pictures leave the batch when they are finished, from every member."""
    decoders = [decoder(seed), decoder(seed + 1, sentinel=True)]
    for made in decoders:
        made.output_bias[2] += 1  # ends come early, at different steps
    memories = [memory(made, 12, seed) for made in decoders]

    def stepper(rows: slice) -> EnsembleStepper:
        parts = (Memory(*(part[rows] for part in of)) for of in memories)
        return EnsembleStepper([TorchStepper(made, part) for made, part in zip(decoders, parts, strict=True)])

    config = SearchConfig(beam_size=beam, max_length=6)
    together = find_hypotheses(stepper(slice(None)), config)
    for row, (found,) in enumerate(together):
        ((alone,),) = find_hypotheses(stepper(slice(row, row + 1)), config)
        assert found.words == alone.words
        assert found.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)


def pair(data: CaptionData) -> list[Captioner]:
    first = tiny.captioner(data)
    members = [first, Captioner(first.config, first.vocabulary)]  # encoders differ too
    with torch.no_grad():
        for made in members:
            liven(made.decoder)
    return members


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_mean_probabilities(tmp_path: Path) -> None:
    members = pair(tiny.shapes(tmp_path))
    seen = torch.randn(2, 1, members[0].encoder.channels)
    memories = [made.eval().decoder.memory(seen) for made in members]
    words = torch.tensor([[[START, 4, 5, 2]], [[START, 6, 2, PAD]]])
    members[1].config = replace(members[1].config, temperature=2.0)
    logits = [made.decoder(of, words[..., :-1]) for made, of in zip(members, memories, strict=True)]
    each = [logits[0].softmax(-1), (logits[1] / 2).softmax(-1)]
    chances = (sum(each) / 2).gather(-1, words[..., 1:, None])[..., 0]  # type: ignore[union-attr]
    expected = -chances[words[..., 1:] != PAD].log().mean()
    torch.testing.assert_close(likelihood_loss(members, memories, words), expected)
    one = objectives.likelihood_loss(members[0], memories[0], words, 0.0)
    torch.testing.assert_close(likelihood_loss(members[:1], memories[:1], words), one)


def test_one_is_evaluated_as_the_engine_does_and_two_as_themselves(tmp_path: Path) -> None:
    data = tiny.shapes(tmp_path)
    members, config, pictures = pair(data), tiny.recipe().train, data.split("val")
    stranger = Captioner(members[0].config, Vocabulary.build(["another language altogether"], 1))

    def together(*of: Captioner) -> validation.Evaluation:
        return ensemble.evaluate(of, pictures, tmp_path / "cache", tiny.CPU, SearchConfig(max_length=6), config)

    stages = features.before_head(members[0], len(members[0].encoder.stages))
    alone = []
    for made in members:
        val = features.cached(made, stages, pictures, 1, AugmentConfig(), tmp_path / "cache", tiny.CPU, "fp32")
        alone.append(validation.evaluate(made, val, SearchConfig(max_length=6), config))
    one = together(members[0])
    assert (one.captions, one.cider) == (alone[0].captions, alone[0].cider)
    assert one.loss == pytest.approx(alone[0].loss)
    both = together(*members)
    assert both.loss < (alone[0].loss + alone[1].loss) / 2  # the logarithm is concave
    assert both.loss == pytest.approx(together(*members[::-1]).loss)
    with pytest.raises(CheckpointError, match="different vocabularies"):
        together(members[0], stranger)
