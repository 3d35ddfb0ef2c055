from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.captioner import Captioner
from model.decoder import Memory
from model.vocabulary import END, PAD, SPECIAL, START, UNKNOWN, Vocabulary
from training.batching import padded
from training.objectives import Reward, cider_loss, draw, likelihood_loss, memory_of
from training.scoring.cider import CiderD

A, RED, CIRCLE = 4, 5, 6  # any words will do


def memory(captioner: Captioner, batch: int, seed: int = 0) -> Memory:
    features = torch.randn(batch, 1, captioner.encoder.channels, generator=torch.Generator().manual_seed(seed))
    return captioner.decoder.memory(features)


@torch.no_grad()
@pytest.mark.parametrize("frozen", [0, 3, 9])
def test_the_frozen_stages_make_no_difference_to_the_memory(frozen: int, captioner: Captioner) -> None:
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert len(captioner.encoder.stages) == 9
    inputs: Tensor = pixels if frozen == 0 else captioner.encoder.stages[:frozen](captioner.normalise(pixels))
    for mine, expected in zip(memory_of(captioner, inputs, frozen), captioner.encode(pixels), strict=True):
        torch.testing.assert_close(mine, expected)


@torch.no_grad()
def test_likelihood_is_the_mean_over_words_and_padding_counts_for_nothing(captioner: Captioner) -> None:
    of = memory(captioner, 2)
    short, long = [A, CIRCLE], [A, RED, CIRCLE, 7, A, 8, 9]
    words = padded([[short, long], [long, short]])
    logits = captioner.decoder(of, words[..., :-1]).log_softmax(-1)
    total, count = 0.0, 0
    for b, mine in enumerate([[short, long], [long, short]]):
        for n, ids in enumerate(mine):
            for t, word in enumerate([*ids, END]):
                total, count = total - float(logits[b, n, t, word]), count + 1
    assert float(likelihood_loss(captioner, of, words, 0.0)) == pytest.approx(total / count, rel=1e-5)
    more = F.pad(words, (0, 7), value=PAD)
    assert float(likelihood_loss(captioner, of, more, 0.0)) == pytest.approx(total / count, rel=1e-5)


@torch.no_grad()
def test_label_smoothing_is_torchs(captioner: Captioner) -> None:
    of, words = memory(captioner, 1), padded([[[A, RED, CIRCLE]]])
    logits = captioner.decoder(of, words[..., :-1])
    expected = F.cross_entropy(logits.flatten(0, 2), words[..., 1:].flatten(), label_smoothing=0.3)
    assert float(likelihood_loss(captioner, of, words, 0.3)) == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_scheduled_sampling_feeds_the_models_own_words(captioner: Captioner) -> None:
    of, words = memory(captioner, 2), padded([[[A, RED, CIRCLE], [A]], [[A, 7], [A, RED, 8, 9]]])
    inputs, targets = words[..., :-1], words[..., 1:]
    guesses = captioner.decoder(of, inputs).argmax(-1)
    own = inputs.clone()
    own[..., 1:] = torch.where(inputs[..., 1:] == PAD, PAD, guesses[..., :-1])
    assert not torch.equal(own, inputs)
    logits = captioner.decoder(of, own)
    expected = F.cross_entropy(logits[targets != PAD], targets[targets != PAD])
    assert float(likelihood_loss(captioner, of, words, 0.0, own_share=1.0)) == pytest.approx(float(expected), rel=1e-5)
    none = float(likelihood_loss(captioner, of, words, 0.0, own_share=1e-9))
    assert none == pytest.approx(float(likelihood_loss(captioner, of, words, 0.0)))


def test_a_pupil_is_pulled_to_its_teachers_mean_probabilities(captioner: Captioner) -> None:
    words = padded([[[A, RED, CIRCLE], [A]], [[A, 7], [A, RED, 8, 9]]])
    said = words[..., 1:] != PAD
    other = Captioner(captioner.config, captioner.vocabulary).eval()
    pairs = [(captioner, memory(captioner, 2)), (other, memory(other, 2))]
    with torch.no_grad():
        (_, of), _ = pairs
        mean = sum(t.decoder(m, words[..., :-1])[said].softmax(-1) for t, m in pairs) / 2
        mine = captioner.decoder(of, words[..., :-1])[said].log_softmax(-1)
    said_loss = float(likelihood_loss(captioner, of, words, 0.1).detach())
    expected = 0.75 * said_loss - 0.25 * float((mean * mine).sum(-1).mean())
    taught = likelihood_loss(captioner, of, words, 0.1, 0.0, pairs, 0.25)
    assert float(taught.detach()) == pytest.approx(expected, rel=1e-5)

    # A pupil that says what its teacher says has nothing to learn.
    captioner.zero_grad()
    likelihood_loss(captioner, memory(captioner, 2), words, 0.1, 0.0, pairs[:1], 1.0).backward()
    still = max(float(p.grad.abs().max()) for p in captioner.decoder.parameters() if p.grad is not None)
    captioner.zero_grad()
    likelihood_loss(captioner, memory(captioner, 2), words, 0.1, 0.0, pairs[1:], 1.0).backward()
    moved = max(float(p.grad.abs().max()) for p in captioner.decoder.parameters() if p.grad is not None)
    captioner.zero_grad()
    assert still < 1e-6 < 1e-3 < moved


@torch.no_grad()
def test_drawn_captions_are_whole_and_as_frequent_as_the_model_says(captioner: Captioner) -> None:
    torch.manual_seed(0)
    of = memory(captioner, 2)
    words = draw(captioner, of, 4000, 4)
    assert words.shape[:2] == (2, 4000)
    assert words.shape[2] <= 5
    assert (words[..., 0] == START).all()
    assert not torch.isin(words[..., 1:], torch.tensor([START, UNKNOWN])).any()
    after_end = (words == END).cumsum(-1) - (words == END).int() > 0
    assert torch.equal(words == PAD, after_end)
    logits = captioner.decoder(of, words[:, :1, :1])[:, 0, 0]
    chances = captioner.decoder.log_probabilities(logits, 1.0).exp()
    for b in range(2):
        shares = torch.bincount(words[b, :, 1], minlength=chances.shape[1]) / 4000
        deviation = (chances[b] * (1 - chances[b]) / 4000).sqrt()
        assert ((shares - chances[b]).abs() <= 5 * deviation + 1e-3).all()
        # The second word too, after the most frequent first one.
        first = int(words[b, :, 1].bincount().argmax())
        second = words[b, words[b, :, 1] == first, 2]
        logits = captioner.decoder(of, torch.tensor([[[START, first]]] * 2))[b, 0, 1]
        p = captioner.decoder.log_probabilities(logits, 1.0).exp()
        shares = torch.bincount(second, minlength=len(p)) / len(second)
        assert ((shares - p).abs() <= 5 * (p * (1 - p) / len(second)).sqrt() + 2e-3).all()


def test_cider_loss_prefers_the_better_sample(captioner: Captioner) -> None:
    good, bad = [A, RED, CIRCLE, 7], [9, 9, 8]
    samples = padded([[good, bad]])
    reward = CiderD([[[9, 9, END]], [[*good, END]], [[8, END]]])

    @torch.no_grad()
    def log_probability(ids: list[int]) -> Tensor:
        words = padded([[ids]])
        log_probs = captioner.decoder.log_probabilities(captioner.decoder(memory(captioner, 1), words[..., :-1]), 1.0)
        return log_probs.gather(-1, words[..., 1:, None]).sum()

    before = [float(log_probability(ids)) for ids in (good, bad)]
    loss, mean = cider_loss(captioner, memory(captioner, 1), [1], reward.score, samples)
    scores = reward.score([[*good, END], [*bad, END]], [1, 1])
    assert mean == pytest.approx(scores.mean())
    assert scores[0] > scores[1]
    # Two samples: each one's baseline is the other. Mean over the 9 words said.
    expected = -(scores[0] - scores[1]) * (before[0] - before[1]) / 9
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)

    captioner.zero_grad()
    loss.backward()
    kept = {name: p.detach().clone() for name, p in captioner.decoder.named_parameters()}
    try:
        with torch.no_grad():
            for parameter in captioner.decoder.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-5 * parameter.grad
        after = [float(log_probability(ids)) for ids in (good, bad)]
        assert after[0] > before[0]
        assert after[0] - after[1] > before[0] - before[1]
    finally:
        captioner.decoder.load_state_dict(kept)
        captioner.zero_grad()


def test_a_reward_adds_what_bleu_and_right_objects_are_worth() -> None:
    vocabulary = Vocabulary((*SPECIAL, "a", "and", "dog", "runs", "cat"))
    references = [[vocabulary.encode("a dog runs")], [vocabulary.encode("a cat")]]
    captions = [[*vocabulary.encode(text), END] for text in ("a dog runs", "a dog and a cat", "runs")]
    cider, objects, bleu = (Reward(vocabulary, references, 2, *weights) for weights in ((0,), (0.5,), (0, 2.0)))
    plain = cider(captions, [0, 0, 0])
    # A dog is there, a cat is not; "runs" names nothing.
    np.testing.assert_allclose(objects(captions, [0, 0, 0]) - plain, [0.5, 0.0, 0.0])
    whole, part, _ = (bleu(captions, [0, 0, 0]) - plain) / 2
    assert whole == pytest.approx(1.0)
    assert 0 < part < 1


def test_samples_of_equal_reward_teach_nothing(captioner: Captioner) -> None:
    samples = padded([[[A, RED], [A, RED], [A, RED]]])
    loss, _ = cider_loss(captioner, memory(captioner, 1), [0], CiderD([[[A, RED, END]], [[A, END]]]).score, samples)
    loss.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-7 for p in captioner.parameters())
    captioner.zero_grad()


def test_breaking_off_earns_less_than_ending(captioner: Captioner) -> None:
    whole = padded([[[A, RED, CIRCLE], [A, RED, CIRCLE]]])
    whole[0, 1, -1] = PAD  # the second one never ended
    reward = CiderD([[[A, RED, CIRCLE, END]], [[A, END]], [[7, 8, END]]])
    _, mean = cider_loss(captioner, memory(captioner, 1), [0], reward.score, whole)
    assert mean < reward.score([[A, RED, CIRCLE, END]], [0])[0]
