from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cells import CELLS, SIGMOID_GATES
from model.config import DecoderConfig
from model.decoder import Decoder, LikelyTags, Memory
from model.errors import ConfigError
from model.vocabulary import PAD, START, UNKNOWN
from tests.model.tiny import decoder, memory

every_cell = pytest.mark.parametrize("cell", sorted(CELLS))
with_and_without_sentinel = pytest.mark.parametrize("sentinel", [False, True])
with_and_without_feeding = pytest.mark.parametrize("feed_attention", [False, True])
one_and_two_layers = pytest.mark.parametrize("layers", [1, 2])
EXACT = {"atol": 1e-5, "rtol": 1e-5}


def step_through(made: Decoder, of: Memory, words: Tensor) -> Tensor:
    """The logits (B, N, T, V) of words (B, N, T), a step at a time."""
    state = made.initial_state(of, words.shape[1])
    logits = []
    for word in words.unbind(-1):
        out = made.step(of, word, state)
        state = out.state
        logits.append(out.logits)
    return torch.stack(logits, 2)


@torch.no_grad()
@every_cell
@with_and_without_sentinel
@with_and_without_feeding
@one_and_two_layers
@pytest.mark.parametrize(("batch", "captions", "steps"), [(1, 1, 1), (3, 2, 6)])
def test_teacher_forcing_equals_stepping(
    cell: str, sentinel: bool, feed_attention: bool, layers: int, batch: int, captions: int, steps: int
) -> None:
    made = decoder(cell=cell, sentinel=sentinel, feed_attention=feed_attention, layers=layers)
    of = memory(made, batch)
    words = torch.randint(0, 12, (batch, captions, steps), generator=torch.Generator().manual_seed(1))
    logits = made(of, words)
    torch.testing.assert_close(logits, step_through(made, of, words), **EXACT)
    assert logits.std() > 0.1


@torch.no_grad()
@every_cell
@with_and_without_sentinel
def test_attention_is_a_share_of_each_region(cell: str, sentinel: bool) -> None:
    made = decoder(cell=cell, sentinel=sentinel)
    of = memory(made, 2)
    out = made.step(of, torch.tensor([[START, 7, 8], [START, 9, 4]]), made.initial_state(of, 3))
    assert out.attention is not None
    assert out.attention.shape == (2, 3, 5 + 1)
    assert (out.attention >= 0).all()
    torch.testing.assert_close(out.attention.sum(-1), torch.ones(2, 3))
    assert ((out.attention[..., -1] > 0) == sentinel).all()
    assert out.attention[..., :-1].std(-1).min() > 0.01  # it looks somewhere


@torch.no_grad()
@every_cell
@one_and_two_layers
def test_without_attention_the_picture_is_the_first_state_and_nothing_more(cell: str, layers: int) -> None:
    made = decoder(cell=cell, attention_heads=0, layers=layers)
    assert not any(name.startswith(("query", "key", "value", "position")) for name in made.state_dict())
    of = memory(made, 2)
    assert of.keys.shape == of.values.shape == (2, 0, 16)
    words = torch.randint(0, 12, (2, 3, 6), generator=torch.Generator().manual_seed(1))
    logits = made(of, words)
    torch.testing.assert_close(logits, step_through(made, of, words), **EXACT)
    assert (logits[0] - made(memory(made, 2, seed=1), words)[0]).abs().max() > 0.01  # it tells pictures apart
    # A step from a given state is the same whatever the picture was.
    state = torch.randn(2, 3, made.state_size)
    out = made.step(of, words[..., 0], state)
    assert out.attention is None
    torch.testing.assert_close(
        out.logits, made.step(memory(made, 2, seed=1), words[..., 0], state).logits, atol=0, rtol=0
    )
    prepared = made.prepare()
    assert prepared is not None
    torch.testing.assert_close(out.logits, made.step(of, words[..., 0], state, prepared).logits)


@torch.no_grad()
def test_attention_reads_the_regions_it_names() -> None:
    """With all weight on one region the context is that region's value."""
    made = decoder(regions=3, attention_heads=1)
    keys = torch.zeros(1, 3, 16)
    values = torch.randn(1, 3, 16)
    h = torch.randn(1, 1, 16)
    keys[0, 1] = 1000 * made.query(h)[0, 0]
    context, attention = made._attend(h, Memory(keys, values, keys))
    torch.testing.assert_close(attention[0, 0], torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(context[0, 0], values[0, 1])


@torch.no_grad()
def test_the_sentinel_competes_with_the_regions_and_brings_its_own_value() -> None:
    made = decoder(sentinel=True, attention_heads=1)
    assert made.sentinel is not None
    h, regions = torch.randn(1, 1, 16), torch.zeros(1, 5, 16)
    _, value = made.sentinel(h).chunk(2, -1)
    for sign, share in ((1, 1.0), (-1, 0.0)):
        made.sentinel.weight[:16] = 0
        made.sentinel.bias[:16] = sign * 1000 * made.query(h)[0, 0]  # its key: all the query asks for, or the opposite
        context, attention = made._attend(h, Memory(regions, regions, regions))
        assert float(attention[0, 0, -1]) == pytest.approx(share)
        torch.testing.assert_close(context, share * value)


@torch.no_grad()
@with_and_without_sentinel
@pytest.mark.parametrize("feed_attention", [False, True])
def test_likely_tags_are_further_places_to_look_at(sentinel: bool, feed_attention: bool) -> None:
    made = decoder(sentinel=sentinel, feed_attention=feed_attention, tag_slots=3)
    plain = decoder(sentinel=sentinel, feed_attention=feed_attention)
    plain.load_state_dict({name: made.state_dict()[name] for name in plain.state_dict()})
    features, words = torch.randn(2, 5, 6), torch.randint(0, 12, (2, 2, 4))
    tags = LikelyTags(torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.7, 0.6]]))
    of, without = made.memory(features, tags), plain.memory(features)
    assert of.keys.shape == of.values.shape == (2, 5 + 3, 16)
    for mine, other in zip(of[:2], without[:2], strict=True):
        torch.testing.assert_close(mine[:, :5], other)  # the regions' share is what it was
    assert torch.equal(of.start, without.start)
    torch.testing.assert_close(made(of, words), step_through(made, of, words), **EXACT)
    # In whatever order they come; and what each says depends on how likely it is, and on which word it is.
    order = torch.tensor([2, 0, 1])
    turned = made.memory(features, LikelyTags(tags.words[:, order], tags.probabilities[:, order]))
    torch.testing.assert_close(made(turned, words), made(of, words), **EXACT)
    for other in (tags._replace(probabilities=1 - tags.probabilities), tags._replace(words=tags.words.flip(0))):
        assert (made(made.memory(features, other), words) - made(of, words)).abs().max() > 0.01
    state = made.initial_state(of, 2)
    for memory_, decoder_, places in ((of, made, 9), (without, plain, 6)):
        attention = decoder_.step(memory_, words[..., 0], state).attention
        assert attention is not None
        assert attention.shape == (2, 2, places)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2))
        assert (attention[..., :-1] > 0).all()


@torch.no_grad()
@every_cell
@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 4), captions=st.integers(1, 3), steps=st.integers(1, 5), seed=st.integers(0, 999))
def test_a_batch_equals_each_picture_and_caption_alone(
    cell: str, batch: int, captions: int, steps: int, seed: int
) -> None:
    made = decoder(
        cell=cell, sentinel=seed % 2 == 0, feed_attention=seed % 3 == 0, layers=1 + seed % 5 % 2, tag_slots=seed % 4
    )
    of = Memory(*(part.double() for part in memory(made, batch, seed)))
    made.double()  # in float32 products of other shapes are rounded otherwise, which recurrence adds up
    words = torch.randint(0, 12, (batch, captions, steps), generator=torch.Generator().manual_seed(seed))
    together = made(of, words)
    for b in range(batch):
        for n in range(captions):
            alone = made(Memory(*(part[b : b + 1] for part in of)), words[b : b + 1, n : n + 1])
            torch.testing.assert_close(together[b, n], alone[0, 0], **EXACT)


@torch.no_grad()
def test_later_words_change_nothing_before_them() -> None:
    made = decoder()
    of = memory(made, 1)
    words = torch.tensor([[[START, 5, 6, 7, 8]]])
    changed = words.clone()
    changed[..., 3] = 9
    before, after = made(of, words), made(of, changed)
    torch.testing.assert_close(before[..., :3, :], after[..., :3, :])
    assert (before[..., 3, :] - after[..., 3, :]).abs().max() > 1e-3


@torch.no_grad()
@every_cell
def test_what_was_attended_to_is_fed_to_the_next_step(cell: str) -> None:
    """Of two decoders with the same weights, one blind to what layer 1 is fed, only that one forgets the last look."""
    made = decoder(cell=cell, feed_attention=True)
    of = memory(made, 1)
    state = made.initial_state(of, 1)
    elsewhere = Memory(of.keys, of.values.flip(1), of.start)  # the same look, at other contents
    words = torch.tensor([[5]])

    def layer1(memory: Memory) -> torch.Tensor:
        return made.step(memory, words, state).state.chunk(2, -1)[0]

    assert (layer1(of) - layer1(elsewhere)).abs().max() > 1e-3
    made.layer1.weight_ih[:, -16:] = 0
    torch.testing.assert_close(layer1(of), layer1(elsewhere), atol=0, rtol=0)


@torch.no_grad()
def test_switches_that_are_off_leave_no_trace() -> None:
    """Weights and results are those of a decoder that has no such switches."""
    made = decoder(tied=True, feed_attention=False)
    assert made.layer1.weight_ih.shape[1] == 8
    assert "output_words" not in made.state_dict()
    assert made.state_size == decoder(feed_attention=True).state_size


@torch.no_grad()
@every_cell
@with_and_without_sentinel
def test_with_one_layer_the_output_reads_the_layer_that_asked(cell: str, sentinel: bool) -> None:
    """It is the decoder of two layers whose second shows what the first did."""
    two, one = (decoder(cell=cell, sentinel=sentinel, layers=layers) for layers in (2, 1))
    one.load_state_dict({name: value for name, value in two.state_dict().items() if "layer2" not in name})
    assert one.state_size == two.state_size / 2
    of, words = memory(one, 2), torch.tensor([[7], [9]])
    start = one.initial_state(of, 1)
    torch.testing.assert_close(start[:, 0], of.start, atol=0, rtol=0)
    asked, both = one.step(of, words, start), two.step(of, words, two.initial_state(of, 1))
    assert asked.attention is not None
    torch.testing.assert_close(asked.attention, both.attention)
    torch.testing.assert_close(asked.state, both.state[..., : one.state_size])
    hidden = asked.state[..., -16:]
    context, _ = one._attend(hidden, of)
    torch.testing.assert_close(asked.logits, one.logits(torch.tanh(one.output(torch.cat([hidden, context], -1)))))


@torch.no_grad()
def test_an_untied_output_has_vectors_of_its_own() -> None:
    tied, untied = decoder(), decoder(tied=False)
    assert untied.output_words is not None
    outputs = torch.randn(3, 8)
    torch.testing.assert_close(untied.logits(outputs), outputs @ untied.output_words.T + untied.output_bias)
    before = tied.logits(outputs), untied.logits(outputs)
    for made in (tied, untied):
        made.embedding.weight[7] += 1
    assert not torch.equal(tied.logits(outputs), before[0])
    torch.testing.assert_close(untied.logits(outputs), before[1], atol=0, rtol=0)


@torch.no_grad()
@with_and_without_feeding
@one_and_two_layers
def test_hypotheses_of_a_picture_keep_their_own_state(feed_attention: bool, layers: int) -> None:
    made = decoder(feed_attention=feed_attention, layers=layers)
    of = memory(made, 2)
    first = made.step(of, torch.tensor([[4], [5]]), made.initial_state(of, 1))
    assert first.state.shape == (2, 1, made.state_size)
    two = made.step(of, torch.tensor([[6, 7], [8, 9]]), first.state.expand(-1, 2, -1).contiguous())
    for k, words in enumerate((torch.tensor([[6], [8]]), torch.tensor([[7], [9]]))):
        one = made.step(of, words, first.state)
        torch.testing.assert_close(two.logits[:, k], one.logits[:, 0], **EXACT)
        torch.testing.assert_close(two.state[:, k], one.state[:, 0], **EXACT)


@torch.no_grad()
@every_cell
@one_and_two_layers
def test_gates_of_every_layer_are_reported(cell: str, layers: int) -> None:
    made = decoder(cell=cell, layers=layers)
    of = memory(made, 2)
    gates = made.step(of, torch.tensor([[4], [5]]), made.initial_state(of, 1)).gates
    assert gates.shape == (2, 1, layers, len(made.gate_names))
    assert made.gate_names == CELLS[cell].gate_names
    assert (gates >= 0).all()  # means of sigmoids, root mean squares
    for name in SIGMOID_GATES & set(made.gate_names):
        assert (gates[..., made.gate_names.index(name)] <= 1).all()


@torch.no_grad()
@given(temperature=st.floats(0.1, 4))
@settings(max_examples=20, deadline=None)
def test_probabilities_are_of_what_may_be_said(temperature: float) -> None:
    made = decoder()
    logits = 5 * torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    log_probabilities = made.log_probabilities(logits, temperature)
    probabilities = log_probabilities.exp()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4))
    assert not probabilities[:, [PAD, START, UNKNOWN]].any()
    assert torch.isfinite(log_probabilities.half()).all()  # a float16 graph holds them
    sayable = [i for i in range(12) if i not in (PAD, START, UNKNOWN)]
    expected = (logits[:, sayable] / temperature).log_softmax(-1)
    torch.testing.assert_close(log_probabilities[:, sayable], expected, **EXACT)


def test_dropout_is_for_training_only() -> None:
    made = decoder(dropout=0.5)
    of = memory(made, 1)
    words = torch.tensor([[[START, 5, 6]]])
    with torch.no_grad():
        torch.testing.assert_close(made(of, words), made(of, words), atol=0, rtol=0)
        made.train()
        assert not torch.equal(made(of, words), made(of, words))


def test_every_parameter_learns() -> None:
    for cell, layers, heads in itertools.product(CELLS, (1, 2), (0, 2)):
        made = decoder(
            cell=cell, layers=layers, attention_heads=heads, sentinel=heads > 0, tied=cell != "lstm",
            feed_attention=heads > 0 and cell == "lstm", tag_slots=heads,
        )  # fmt: skip
        tags = LikelyTags(torch.randint(4, 12, (2, heads)), torch.rand(2, heads))
        of = made.memory(torch.randn(2, 5, 6), tags if heads else None)
        made(of, torch.randint(4, 12, (2, 2, 4))).square().mean().backward()
        for name, parameter in made.named_parameters():
            # One key a picture added to all keys shifts all scores alike, so its bias only matters with a sentinel.
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="hidden_size 10 is not a multiple of attention_heads 4"):
        Decoder(DecoderConfig(hidden_size=10, attention_heads=4), 3, 4, 9)


@every_cell
@with_and_without_sentinel
def test_a_prepared_step_is_the_same_step(cell: str, sentinel: bool) -> None:
    made = decoder(cell=cell, sentinel=sentinel)
    of = made.memory(torch.randn(2, 5, 6))
    words = torch.tensor([[START, 7, 8], [5, 9, 4]])
    state = torch.randn(2, 3, made.state_size)
    prepared = made.prepare()
    assert prepared is not None
    assert prepared.words.shape == (12, made.layer1.chunks * 16)
    assert prepared.query_weight is not None
    assert prepared.query_weight.shape == (48 if sentinel else 16, 16)
    for ready, computed in zip(made.step(of, words, state, prepared), made.step(of, words, state), strict=True):
        torch.testing.assert_close(ready, computed)
    assert decoder(cell=cell, feed_attention=True).prepare() is None
