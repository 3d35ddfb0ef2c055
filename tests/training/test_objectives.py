from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.captioner import Captioner
from model.config import SearchConfig
from model.decoder import Memory
from model.search import find_hypotheses
from model.vocabulary import END, PAD, SPECIAL, START, UNKNOWN, Vocabulary, words_of
from tests.model.tiny import liven
from tests.training import tiny
from training import objectives
from training.augment import AugmentConfig, augment
from training.batching import Batch, CaptionSource, padded
from training.config import TrainConfig
from training.data import Picture
from training.features import Features
from training.language.sides import mirrored
from training.objectives import Reward, cider_loss, draw, likelihood_loss, memory_of
from training.optimisation import TrainingDiverged, WeightAverage, descend, training_mode
from training.scoring.cider import CiderD
from training.validation import evaluate

A, RED, CIRCLE = 4, 5, 6  # any words will do


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    made = tiny.captioner(tiny.shapes(tmp_path_factory.mktemp("data")))
    with torch.no_grad():
        liven(made.decoder)
    return made.eval()


def feature_set(captions: Sequence[Sequence[str]], views: int = 1, pixels: bool = False) -> Features:
    """Features of pictures with these captions; row r, view v is filled with r + v / 10."""
    count = len(captions)
    if pixels:
        data: np.ndarray = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8, 3), dtype=np.uint8)
    else:
        data = np.arange(count)[:, None] + np.arange(views)[None] / 10
        data = np.broadcast_to(data[:, :, None, None, None], (count, views, 1280, 1, 1)).astype(np.float16)
    flipped = np.zeros((count, views), np.bool_)
    flipped[:, 1::2] = True
    pictures = tuple(
        Picture(f"{i}.png", tuple(mine), "train", "shapes" if i % 2 else "others", Path("none"))
        for i, mine in enumerate(captions)
    )
    return Features(data, flipped, pictures, (), 9)


def source_of(captioner: Captioner, captions: Sequence[Sequence[str]], views: int = 1, **train: Any) -> CaptionSource:
    config = TrainConfig(**{"batch_size": 4, "captions_per_picture": 2, **train})
    return CaptionSource(feature_set(captions, views), captioner, config, AugmentConfig(flip=True))


def said(captioner: Captioner, words: Tensor) -> list[str]:
    return captioner.vocabulary.decode(words.tolist())


CAPTIONS = [[f"a red circle left of a {'blue ' * (i % 5)}square", "a circle", "red"][: 1 + i % 3] for i in range(22)]


# --- batches ---------------------------------------------------------------------------------------


def test_every_picture_comes_once_an_epoch_with_its_own_captions(captioner: Captioner) -> None:
    source = source_of(captioner, CAPTIONS, views=2)
    batches = list(source.batches(0, tiny.CPU))
    assert len(batches) == len(source) == 6
    assert sorted(row for batch in batches for row in batch.rows) == list(range(22))
    views = set()
    for batch in batches:
        for row, flip, values, words in zip(batch.rows, batch.flipped, batch.inputs, batch.words, strict=True):
            assert float(values[0]) == pytest.approx(row + 0.1 * flip, abs=0.01)
            views.add(flip)
            own = [words_of(mirrored(c) or "" if flip else c) for c in CAPTIONS[row]]
            for caption in words:
                assert said(captioner, caption) in own
                ids = caption[caption != PAD].tolist()
                assert (ids[0], ids[-1]) == (START, END)
    assert views == {False, True}


@pytest.mark.parametrize(("visits", "count"), [(2.0, 22), (1.5, 16), (0.5, 6), (0.0, 0)])
def test_a_set_is_visited_as_often_as_asked(visits: float, count: int, captioner: Captioner) -> None:
    """Odd rows are of the set `shapes`, even ones of `others`, which is visited once."""
    config = TrainConfig(batch_size=4, captions_per_picture=2)
    source = CaptionSource(feature_set(CAPTIONS), captioner, config, AugmentConfig(), {"shapes": visits})
    orders = [[row for batch in source.batches(epoch, tiny.CPU) for row in batch.rows] for epoch in range(2)]
    for rows in orders:
        counts = np.bincount(rows, minlength=22)
        assert (counts[0::2] == 1).all()
        assert set(counts[1::2].tolist()) <= {math.floor(visits), math.ceil(visits)}
        assert counts[1::2].sum() == count
    assert len(source) == math.ceil((11 + count) / 4) == len(list(source.batches(0, tiny.CPU)))
    assert orders[0] != orders[1]


def test_a_picture_without_a_true_mirrored_caption_is_not_mirrored(captioner: Captioner) -> None:
    """Cached views and pixels; of the other pictures only the true captions are taught when mirrored."""
    captions = [["it looks right", "the circle is left"], ["a red circle left of a square", "it looks right"]] * 4
    source = source_of(captioner, captions, views=2)
    mirrored_rows = set()
    for epoch in range(4):
        for batch in source.batches(epoch, tiny.CPU):
            for row, flip, values, words in zip(batch.rows, batch.flipped, batch.inputs, batch.words, strict=True):
                assert float(values[0]) == pytest.approx(row + 0.1 * flip, abs=0.01)
                mirrored_rows |= {row} if flip else set()
                if flip:
                    assert said(captioner, words[0]) == words_of("a red circle right of a square")
    assert mirrored_rows == {1, 3, 5, 7}

    features = feature_set(captions, pixels=True)
    source = CaptionSource(features, captioner, TrainConfig(batch_size=8), AugmentConfig(flip=True))
    flips: dict[int, set[bool]] = {}
    for epoch in range(8):
        [batch] = source.batches(epoch, tiny.CPU)
        for row, flip, pixels in zip(batch.rows, batch.flipped, batch.inputs.numpy(), strict=True):
            original = features.data[row, 0]
            np.testing.assert_array_equal(pixels, original[:, ::-1] if flip else original)
            flips.setdefault(row % 2, set()).add(flip)
    assert flips == {0: {False}, 1: {False, True}}


def test_captions_are_chosen_without_repeats_where_there_are_enough(captioner: Captioner) -> None:
    source = source_of(captioner, CAPTIONS)
    for batch in source.batches(3, tiny.CPU):
        for row, words in zip(batch.rows, batch.words, strict=True):
            assert len({tuple(caption.tolist()) for caption in words}) == min(2, len(CAPTIONS[row]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 7))
def test_batches_depend_on_seed_and_epoch_alone_and_can_start_midway(
    captioner: Captioner, seed: int, epoch: int, skip: int
) -> None:
    def batches(skip: int, seed: int = seed, epoch: int = epoch) -> list[Batch]:
        return list(source_of(captioner, CAPTIONS, views=2, seed=seed).batches(epoch, tiny.CPU, skip))

    whole = batches(0)
    for mine, other in zip(batches(skip), whole[skip:], strict=True):
        assert mine.rows == other.rows
        assert torch.equal(mine.words, other.words)
        assert torch.equal(mine.inputs, other.inputs)
    assert [b.rows for b in batches(0, seed=seed + 1)] != [b.rows for b in whole]
    assert [b.rows for b in batches(0, epoch=epoch + 1)] != [b.rows for b in whole]


def test_captions_of_like_length_stand_together(captioner: Captioner) -> None:
    captions = [["a " * (1 + i % 8)] for i in range(64)]
    source = source_of(captioner, captions, captions_per_picture=1, batch_size=8)
    for batch in source.batches(0, tiny.CPU):
        assert batch.words.shape[-1] - 2 == int((batch.words == A).sum(-1).max())
        assert (batch.words == PAD).sum() == 0  # eight lengths, eight batches


def test_long_captions_are_cut(captioner: Captioner) -> None:
    source = source_of(captioner, [["a red circle above a blue square"]], max_words=3)
    (batch,) = source.batches(0, tiny.CPU)
    assert said(captioner, batch.words[0, 0]) == ["a", "red", "circle"]
    assert not (batch.words == END).any()  # it ends later: none is taught here
    assert said(captioner, torch.tensor(source.ids[0][0])) == [
        "a",
        "red",
        "circle",
        "above",
        "a",
        "blue",
        "square",
    ]  # for rewards


def test_pixels_are_augmented_anew_at_every_visit(captioner: Captioner) -> None:
    features = feature_set([["a circle left of a square"]] * 9, pixels=True)
    augmentation = AugmentConfig(flip=True, min_scale=0.8)
    config = TrainConfig(batch_size=4, captions_per_picture=1, seed=5)
    seen: dict[int, list[Tensor]] = {}
    for epoch in (0, 1):
        for number, batch in enumerate(
            CaptionSource(features, captioner, config, augmentation).batches(epoch, tiny.CPU)
        ):
            assert batch.inputs.dtype == torch.uint8
            for row, flip, pixels, words in zip(batch.rows, batch.flipped, batch.inputs, batch.words, strict=True):
                expected, flipped = augment(
                    features.data[row, 0], np.random.default_rng([5, epoch, number, row]), augmentation
                )
                np.testing.assert_array_equal(pixels, expected)
                assert flip == flipped
                assert said(captioner, words[0])[2] == ("right" if flip else "left")
                seen.setdefault(row, []).append(pixels)
    assert any(not torch.equal(first, second) for first, second in seen.values())


@given(st.lists(st.lists(st.lists(st.integers(4, 9), max_size=5), min_size=2, max_size=2), min_size=1, max_size=4))
def test_padding_goes_behind_the_end(captions: list[list[list[int]]]) -> None:
    words = padded(captions)
    assert words.shape[:2] == (len(captions), 2)
    assert words.shape[2] == 2 + max(len(ids) for mine in captions for ids in mine)
    for mine, expected in zip(words.tolist(), captions, strict=True):
        for ids, wanted in zip(mine, expected, strict=True):
            assert ids == [START, *wanted, END] + [PAD] * (len(ids) - len(wanted) - 2)


@given(
    st.lists(st.lists(st.lists(st.integers(4, 9), max_size=5), min_size=2, max_size=2), min_size=1, max_size=4),
    st.integers(1, 6),
)
def test_what_is_cut_has_no_end(captions: list[list[list[int]]], most: int) -> None:
    words = padded(captions, most)
    for mine, expected in zip(words.tolist(), captions, strict=True):
        for ids, wanted in zip(mine, expected, strict=True):
            taught = [START, *wanted, END] if len(wanted) <= most else [START, *wanted[:most]]
            assert ids == taught + [PAD] * (len(ids) - len(taught))
    assert words.shape[2] == max(min(len(ids), most) + 1 + (len(ids) <= most) for mine in captions for ids in mine)


# --- losses ----------------------------------------------------------------------------------------


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


# --- weights ---------------------------------------------------------------------------------------


def test_the_average_follows_the_weights_and_swaps_both_ways() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    first, frozen = layer.weight.detach().clone(), layer.bias.detach().clone()
    average = WeightAverage(layer, decay=0.5)
    expected = first.clone()
    for step in range(1, 30):
        with torch.no_grad():
            layer.weight.add_(step)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    last = layer.weight.detach().clone()
    average.swap()
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert torch.equal(layer.bias, frozen)
    average.swap()
    assert torch.equal(layer.weight, last)


def test_statistics_that_are_learnt_are_averaged_with_the_weights() -> None:
    norm = torch.nn.BatchNorm1d(3)
    average = WeightAverage(norm, decay=0.5)
    mean, var = torch.zeros(3), torch.ones(3)
    for step in range(1, 20):
        norm(torch.randn(8, 3) * step + step)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        mean = torch.lerp(mean, norm.running_mean, 1 - decay)
        var = torch.lerp(var, norm.running_var, 1 - decay)
    assert not torch.allclose(norm.running_mean, mean)
    average.swap()
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


def test_the_norm_is_the_gradients_before_it_is_clipped() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], 1.0)
    assert descend(weight.square().sum(), optimizer, 5.0) == pytest.approx(10)  # the gradient is (6, 8)
    torch.testing.assert_close(weight.detach(), torch.tensor([0.0, 0.0]), atol=1e-4, rtol=0)
    assert weight.grad is None


def one_epoch(captioner: Captioner, loss_of: Any, config: TrainConfig, frozen: int = 9) -> list[tuple[float, float]]:
    seen = []
    parameters = list(captioner.decoder.parameters())
    batch = Batch(torch.randn(2, 1280, 1, 1), padded([[[A]], [[RED]]]), [0, 1], [False, False])
    if frozen == 0:
        batch = replace(batch, inputs=torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    optimizer = torch.optim.SGD(parameters, 0.1)
    training_mode(captioner, frozen, config)
    for each in (batch, batch):
        loss, metric = loss_of(memory_of(captioner, each.inputs, frozen), each)
        descend(loss, optimizer, config.clip)
        seen.append((float(loss.detach()), metric))
    return seen


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_before_it_touches_the_weights(value: float, captioner: Captioner) -> None:
    before = {name: p.clone() for name, p in captioner.state_dict().items()}
    steps = iter([value])

    def loss_of(of: Memory, batch: Batch) -> tuple[Tensor, float]:
        return of.start.sum() * next(steps), 0.0

    with pytest.raises(TrainingDiverged, match=r"the loss is (inf|-inf|nan), .*lower train\.learning_rate"):
        one_epoch(captioner, loss_of, TrainConfig(precision="fp32"))
    assert all(torch.equal(value, before[name]) for name, value in captioner.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_before_it_touches_the_weights(captioner: Captioner) -> None:
    before = {name: p.clone() for name, p in captioner.state_dict().items()}

    def loss_of(of: Memory, batch: Batch) -> tuple[Tensor, float]:
        return (of.start * 0).abs().sqrt().sum(), 0.0  # 0, with an infinite slope

    with pytest.raises(TrainingDiverged, match=r"the loss is 0\.0, its gradient's norm nan"):
        one_epoch(captioner, loss_of, TrainConfig(precision="fp32"))
    assert all(torch.equal(value, before[name]) for name, value in captioner.state_dict().items())


@pytest.mark.parametrize("batch_norm", ["kept", "learnt"])
def test_batch_norm_statistics(batch_norm: Any, tmp_path: Path) -> None:
    captioner = tiny.captioner(tiny.shapes(tmp_path))
    before = {name: p.clone() for name, p in captioner.state_dict().items() if "running_mean" in name}

    def loss_of(of: Memory, batch: Batch) -> tuple[Tensor, float]:
        return of.start.square().sum(), 1.5

    for frozen in (9, 0):
        seen = one_epoch(captioner, loss_of, TrainConfig(precision="fp32", batch_norm=batch_norm), frozen)
        assert len(seen) == 2
        assert seen[0][1] == 1.5
        now = captioner.state_dict()
        same = [torch.equal(now[name], value) for name, value in before.items()]
        assert all(same) if batch_norm == "kept" or frozen == 9 else not any(same)


def test_blocks_are_left_out_of_the_trained_stages_while_training_and_never_otherwise(tmp_path: Path) -> None:
    captioner = tiny.captioner(tiny.shapes(tmp_path))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    seen: list[Tensor] = []

    def loss_of(of: Memory, batch: Batch) -> tuple[Tensor, float]:
        seen.append(captioner.encoder(captioner.normalise(pixels)).detach())
        return of.start.square().sum(), 0.0

    captioner.eval()
    whole = captioner.encoder(captioner.normalise(pixels)).detach()
    for frozen, drop_path, alike in ((0, 0.0, True), (0, 0.5, False), (9, 0.5, True), (0, 0.0, True)):
        seen.clear()
        one_epoch(captioner, loss_of, TrainConfig(precision="fp32", drop_path=drop_path), frozen)
        assert torch.equal(seen[0], seen[1]) == alike
        assert torch.equal(seen[0], whole) == alike
    one_epoch(captioner, loss_of, TrainConfig(precision="fp32", drop_path=0.5), 0)
    captioner.eval()
    assert torch.equal(captioner.encoder(captioner.normalise(pixels)), whole)


# --- validation ------------------------------------------------------------------------------------


def test_validation_is_free_running_search_scored_by_source(captioner: Captioner) -> None:
    captions = [["a red circle above a blue square", "a circle"], ["a green triangle left of a red square"]] * 3
    features = feature_set(captions)
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
    features = feature_set([["a red circle above a blue square"]] * 2)
    losses = [
        evaluate(captioner, features, SearchConfig(max_length=6), TrainConfig(precision="fp32", max_words=most)).loss
        for most in (3, 20)
    ]
    assert losses[0] == pytest.approx(losses[1])
