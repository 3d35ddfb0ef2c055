"""The recurrent cells from their equations, one line an equation, every gate returned by name.

The plain RNN keeps one state and rewrites it whole at each step, so what it saw first fades with
every multiplication by W. The LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et
al. 2000) adds a cell state C that is only scaled and added to, in four steps: forget gate, input
gate with candidate state, state update, output gate.

Weights carry torch's names, shapes and gate order (`weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`),
so a cell and torch's module are the same function of the same parameters, and `Cell.run` may hand a
whole sequence to torch's fused kernels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]  # each (B, H); the last is the hidden state h that the next layer sees


@dataclass(frozen=True, slots=True)
class CellStep:
    """One step of a cell: the new state and, by name, each gate's activation (B, H)."""

    state: State
    gates: dict[str, Tensor]

    @property
    def hidden(self) -> Tensor:
        """The cell's output h_t, (B, H)."""
        return self.state[-1]


class Cell(nn.Module, ABC):
    """A recurrent cell: s_t = f(x_t, s_{t-1})."""

    chunks: ClassVar[int]  # how many (H)-wide parts its weights hold
    states: ClassVar[int]  # tensors in its state
    gate_names: ClassVar[tuple[str, ...]]  # the keys of `CellStep.gates`, in order

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(torch.empty(self.chunks * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(self.chunks * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(self.chunks * hidden_size))
        self.bias_hh = nn.Parameter(torch.empty(self.chunks * hidden_size))
        bound = 1 / math.sqrt(hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, state: State) -> CellStep:
        """One step from input x (B, I) and state."""
        return self.advance(self.project(x), state)

    def project(self, x: Tensor) -> Tensor:
        """The input's share of every sum, W_x x + b: (..., I) -> (..., chunks * H)."""
        return x @ self.weight_ih.T + self.bias_ih

    @abstractmethod
    def advance(self, z_x: Tensor, state: State) -> CellStep:
        """One step from a projected input (B, chunks * H) and state, by the equations."""

    def run(self, xs: Tensor, state: State) -> tuple[Tensor, State]:
        """A whole sequence xs (B, T, I) -> hidden states (B, T, H) and the last state."""
        hidden = []
        for x in xs.unbind(1):
            state = self(x, state).state
            hidden.append(state[-1])
        return torch.stack(hidden, 1), state

    def initial_state(self, batch: int) -> State:
        """Zeros, `states` of them, each (B, H)."""
        zeros = self.weight_hh.new_zeros(batch, self.hidden_size)
        return (zeros,) * self.states

    def _flat_weights(self) -> list[Tensor]:
        return [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]


class RNNCell(Cell):
    """Plain RNN (Elman 1990): s_t = tanh(W [s_{t-1}, x_t] + b)."""

    chunks, states = 1, 1
    gate_names = ("hidden",)

    def advance(self, z_x: Tensor, state: State) -> CellStep:
        (s_prev,) = state
        s = torch.tanh(z_x + s_prev @ self.weight_hh.T + self.bias_hh)
        return CellStep((s,), {"hidden": s})

    def run(self, xs: Tensor, state: State) -> tuple[Tensor, State]:
        out, s = torch.rnn_tanh(xs, state[0][None], self._flat_weights(), True, 1, 0.0, self.training, False, True)
        return out, (s[0],)


class LSTMCell(Cell):
    """LSTM: a forget, an input and an output gate (three sigmoids), a candidate and an output (two tanhs)."""

    chunks, states = 4, 2
    gate_names = ("forget", "input", "output", "candidate", "state", "hidden")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        # Start by remembering: forget gates near sigmoid(1) = 0.73 (Jozefowicz et al. 2015).
        with torch.no_grad():
            self.bias_ih[hidden_size : 2 * hidden_size] = 1.0
            self.bias_hh[hidden_size : 2 * hidden_size] = 0.0

    def advance(self, z_x: Tensor, state: State) -> CellStep:
        c_prev, h_prev = state
        z_i, z_f, z_c, z_o = self._gate_inputs(z_x, h_prev)  # W [h_{t-1}, x_t] + b, gate by gate
        # 1. forget gate: how much of each memory to keep
        f = torch.sigmoid(z_f)
        # 2. input gate and candidate state: how much of what to write
        i = torch.sigmoid(z_i)
        c_new = torch.tanh(z_c)
        # 3. state update: keep the old, add the new
        c = f * c_prev + i * c_new
        # 4. output gate: how much of the memory to show
        o = torch.sigmoid(z_o)
        h = o * torch.tanh(c)
        return CellStep((c, h), dict(zip(self.gate_names, (f, i, o, c_new, c, h), strict=True)))

    def run(self, xs: Tensor, state: State) -> tuple[Tensor, State]:
        c, h = state
        # torch.lstm is nn.LSTM's fused kernel.
        out, h_last, c_last = torch.lstm(
            xs, (h[None], c[None]), self._flat_weights(), True, 1, 0.0, self.training, False, True
        )
        return out, (c_last[0], h_last[0])

    def _gate_inputs(self, z_x: Tensor, h_prev: Tensor) -> tuple[Tensor, ...]:
        return (z_x + h_prev @ self.weight_hh.T + self.bias_hh).chunk(4, -1)


class PeepholeLSTMCell(LSTMCell):
    """LSTM whose gates also look at the cell state (Gers & Schmidhuber 2000)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.peep_f = nn.Parameter(torch.zeros(hidden_size))
        self.peep_i = nn.Parameter(torch.zeros(hidden_size))
        self.peep_o = nn.Parameter(torch.zeros(hidden_size))

    def advance(self, z_x: Tensor, state: State) -> CellStep:
        c_prev, h_prev = state
        z_i, z_f, z_c, z_o = self._gate_inputs(z_x, h_prev)
        f = torch.sigmoid(z_f + self.peep_f * c_prev)
        i = torch.sigmoid(z_i + self.peep_i * c_prev)
        c_new = torch.tanh(z_c)
        c = f * c_prev + i * c_new
        o = torch.sigmoid(z_o + self.peep_o * c)
        h = o * torch.tanh(c)
        return CellStep((c, h), dict(zip(self.gate_names, (f, i, o, c_new, c, h), strict=True)))

    def run(self, xs: Tensor, state: State) -> tuple[Tensor, State]:
        return Cell.run(self, xs, state)  # no fused kernel knows peepholes


class GRUCell(Cell):
    """Gated recurrent unit (Cho et al. 2014): one state, a reset and an update gate."""

    chunks, states = 3, 1
    gate_names = ("reset", "update", "candidate", "hidden")

    def advance(self, z_x: Tensor, state: State) -> CellStep:
        (h_prev,) = state
        x_r, x_z, x_n = z_x.chunk(3, -1)
        h_r, h_z, h_n = (h_prev @ self.weight_hh.T + self.bias_hh).chunk(3, -1)
        r = torch.sigmoid(x_r + h_r)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        h = z * h_prev + (1 - z) * n
        return CellStep((h,), dict(zip(self.gate_names, (r, z, n, h), strict=True)))

    def run(self, xs: Tensor, state: State) -> tuple[Tensor, State]:
        out, h = torch.gru(xs, state[0][None], self._flat_weights(), True, 1, 0.0, self.training, False, True)
        return out, (h[0],)


CELLS: dict[str, type[Cell]] = {
    "rnn": RNNCell,
    "lstm": LSTMCell,
    "lstm-peephole": PeepholeLSTMCell,
    "gru": GRUCell,
}

# Gates proper, activations in (0, 1), reported by their mean; the rest by their root mean square.
SIGMOID_GATES = frozenset({"forget", "input", "output", "reset", "update"})


def summarise(gates: dict[str, Tensor]) -> Tensor:
    """Gates (B, H) each -> (B, len(gates)): means of the sigmoids, root mean squares of the rest."""
    return torch.stack(
        [value.mean(-1) if name in SIGMOID_GATES else value.square().mean(-1).sqrt() for name, value in gates.items()],
        -1,
    )
