from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.cells import CELLS, SIGMOID_GATES, Cell, LSTMCell, PeepholeLSTMCell, State, summarise

sizes = st.integers(1, 7)
seeds = st.integers(0, 2**31)
kinds = st.sampled_from(sorted(CELLS))
torch_kinds = st.sampled_from(["rnn", "lstm", "gru"])

TORCH_CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
TORCH_LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def make(kind: str, inputs: int, hidden: int) -> Cell:
    cell = CELLS[kind](inputs, hidden)
    for parameter in cell.parameters():
        nn.init.normal_(parameter)
    return cell


def random_state(cell: Cell, batch: int) -> State:
    return tuple(torch.randn(batch, cell.hidden_size) for _ in range(cell.states))


def theirs(state: State) -> Tensor | State:
    """Our state, the hidden state last, as torch's cells take it: alone, or hidden state first."""
    return state[0] if len(state) == 1 else (state[1], state[0])


@settings(max_examples=60, deadline=None)
@given(torch_kinds, sizes, sizes, sizes, seeds)
def test_a_step_equals_torchs_cell(kind: str, batch: int, inputs: int, hidden: int, seed: int) -> None:
    torch.manual_seed(seed)
    cell = make(kind, inputs, hidden)
    reference = TORCH_CELLS[kind](inputs, hidden)
    reference.load_state_dict(cell.state_dict())  # same names, shapes and order of gates
    x, state = torch.randn(batch, inputs), random_state(cell, batch)
    expected = reference(x, theirs(state))
    ours = theirs(cell(x, state).state)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(torch_kinds, sizes, sizes, sizes, st.integers(1, 9), seeds)
def test_run_equals_torchs_layer(kind: str, batch: int, inputs: int, hidden: int, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    cell = make(kind, inputs, hidden)
    layer = TORCH_LAYERS[kind](inputs, hidden, batch_first=True)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    xs, state = torch.randn(batch, steps, inputs), random_state(cell, batch)
    start = tuple(s[None] for s in state)
    expected, last = layer(xs, theirs(start))
    ours, end = cell.run(xs, state)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs(tuple(s[None] for s in end)), last, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(kinds, sizes, sizes, sizes, st.integers(1, 6), seeds)
def test_run_equals_repeated_steps_and_so_do_its_gradients(
    kind: str, batch: int, inputs: int, hidden: int, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    cell = make(kind, inputs, hidden)
    xs, state = torch.randn(batch, steps, inputs, requires_grad=True), random_state(cell, batch)
    end = state
    outputs = []
    for x in xs.unbind(1):
        end = cell(x, end).state
        outputs.append(end[-1])
    expected = torch.stack(outputs, 1)
    ours, last = cell.run(xs, state)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(last, end, atol=1e-5, rtol=0)
    wanted = torch.autograd.grad(expected.square().sum(), [xs, *cell.parameters()])
    given = torch.autograd.grad(ours.square().sum(), [xs, *cell.parameters()])
    torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, seeds)
def test_a_peephole_lstm_without_peepholes_is_an_lstm(batch: int, inputs: int, hidden: int, seed: int) -> None:
    torch.manual_seed(seed)
    plain = make("lstm", inputs, hidden)
    peephole = PeepholeLSTMCell(inputs, hidden)  # its peepholes start at zero
    assert peephole.load_state_dict(plain.state_dict(), strict=False).missing_keys == ["peep_f", "peep_i", "peep_o"]
    x, state = torch.randn(batch, inputs), random_state(plain, batch)
    a, b = plain(x, state), peephole(x, state)
    torch.testing.assert_close(a.state, b.state)
    torch.testing.assert_close(a.gates, b.gates)


def test_a_peephole_step_by_hand() -> None:
    cell = PeepholeLSTMCell(1, 1)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.tensor([[0.5], [-1.0], [0.25], [2.0]]))  # input, forget, candidate, output
        cell.weight_hh.copy_(torch.tensor([[1.0], [0.5], [-0.5], [0.1]]))
        cell.bias_ih.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        cell.bias_hh.copy_(torch.tensor([0.0, 0.1, 0.0, -0.1]))
        cell.peep_f.fill_(0.7)
        cell.peep_i.fill_(-0.6)
        cell.peep_o.fill_(0.9)
    x, c_prev, h_prev = 0.8, 0.5, -0.3
    step = cell(torch.tensor([[x]]), (torch.tensor([[c_prev]]), torch.tensor([[h_prev]])))

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    forget = sigmoid(-1.0 * x + 0.5 * h_prev + 0.3 + 0.7 * c_prev)
    write = sigmoid(0.5 * x + 1.0 * h_prev + 0.1 - 0.6 * c_prev)
    candidate = math.tanh(0.25 * x - 0.5 * h_prev + 0.3)
    c = forget * c_prev + write * candidate
    output = sigmoid(2.0 * x + 0.1 * h_prev + 0.3 + 0.9 * c)  # looks at the new cell state
    h = output * math.tanh(c)
    expected = {"forget": forget, "input": write, "output": output, "candidate": candidate, "state": c, "hidden": h}
    assert {name: value.item() for name, value in step.gates.items()} == pytest.approx(expected, abs=1e-6)
    assert [s.item() for s in step.state] == pytest.approx([c, h], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(kinds, sizes, sizes, seeds)
def test_gates_come_by_name_and_make_up_the_state(kind: str, batch: int, hidden: int, seed: int) -> None:
    torch.manual_seed(seed)
    cell = make(kind, 3, hidden)
    state = random_state(cell, batch)
    step = cell(torch.randn(batch, 3), state)
    gates = step.gates
    assert tuple(gates) == cell.gate_names
    assert all(value.shape == (batch, hidden) for value in gates.values())
    assert all(((gates[name] >= 0) & (gates[name] <= 1)).all() for name in SIGMOID_GATES & gates.keys())
    torch.testing.assert_close(step.hidden, gates["hidden"])
    if isinstance(cell, LSTMCell):
        # The article's four steps: what is kept, what is written, the new state, what is shown of it.
        torch.testing.assert_close(gates["state"], gates["forget"] * state[0] + gates["input"] * gates["candidate"])
        torch.testing.assert_close(gates["hidden"], gates["output"] * gates["state"].tanh())
    if kind == "gru":
        kept = gates["update"] * state[0] + (1 - gates["update"]) * gates["candidate"]
        torch.testing.assert_close(gates["hidden"], kept)


def test_a_fresh_lstm_remembers() -> None:
    torch.manual_seed(0)
    for kind in ("lstm", "lstm-peephole"):
        cell = CELLS[kind](8, 64)
        step = cell(torch.zeros(1, 8), cell.initial_state(1))
        assert step.gates["forget"].mean() > 0.7  # sigmoid(1) = 0.73


def test_the_first_state_is_zero() -> None:
    for kind, cell in CELLS.items():
        states = cell(2, 5).initial_state(3)
        assert [s.shape for s in states] == [(3, 5)] * (2 if "lstm" in kind else 1)
        assert not any(s.any() for s in states)


def test_summaries_are_means_of_gates_and_sizes_of_the_rest() -> None:
    gates = {"forget": torch.tensor([[0.2, 0.4]]), "state": torch.tensor([[-3.0, 4.0]])}
    torch.testing.assert_close(summarise(gates), torch.tensor([[0.3, math.sqrt(12.5)]]))
