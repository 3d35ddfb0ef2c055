"""The one-to-many decoder: one picture in, a sequence of words out.

    word embedding -> recurrent layer 1 (state from the pooled picture)
                   -> multi-head attention over the regions, asked by layer 1
                   -> recurrent layer 2 -> output tied to the word embedding

With `layers = 1` there is no layer 2: the output reads what layer 1 shows in its place. With
`attention_heads = 0` nothing looks at the regions: the picture is layer 1's first state, and words are
all that comes after, as in Vinyals et al. 2015.

Layer 2 does not feed back into layer 1. Teacher forcing therefore runs two fused recurrent layers
and one attention over all time steps at once, and a decoding step is a handful of small products.
The picture's keys and values are computed once for all its captions and beams.

With `tag_slots` the attention looks at words too: those tags that the picture most likely has are further places
beside its regions, each the tag's word vector times its probability (You et al. 2016, semantic attention). They are
part of the same keys and values, so nothing else changes.

With `feed_attention` layer 1 also reads what the step before attended to (input feeding, Luong et al.
2015), and teacher forcing runs layer 1 step by step. What that was follows from layer 1's state, which
asked for it, so it is computed again and the state stays as wide as without it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cells import CELLS, State, summarise
from model.config import DecoderConfig
from model.errors import ConfigError
from model.vocabulary import PAD, START, UNKNOWN


class LikelyTags(NamedTuple):
    """The M likeliest tags of B pictures. words: (B, M), their places in the vocabulary. probabilities: (B, M)."""

    words: Tensor
    probabilities: Tensor


class Memory(NamedTuple):
    """What the decoder needs of B pictures: computed once a picture, read at every step.

    keys, values: (B, L + M, A), of L regions, then M tags; of nothing without attention.
    start: (B, states * H), layer 1's first state.
    """

    keys: Tensor
    values: Tensor
    start: Tensor


class Prepared(NamedTuple):
    """What is the same at every step, for exported graphs, which then compute it at none.

    words: (V, chunks * H), each word's vector as layer 1 sees it.
    query_weight, query_bias: (A or 3A, H) and (A or 3A), the query's and a sentinel's, so that one product gives both;
        None without attention.
    """

    words: Tensor
    query_weight: Tensor | None
    query_bias: Tensor | None


class StepOutput(NamedTuple):
    """One decoding step for B pictures with K captions each.

    logits: (B, K, V). state: (B, K, S), the layers' states.
    attention: (B, K, L + M + 1), mean over heads, the sentinel's weight last; None without.
    gates: (B, K, layers, G).
    """

    logits: Tensor
    state: Tensor
    attention: Tensor | None
    gates: Tensor


class Decoder(nn.Module):
    """Region features and the words so far -> the next word."""

    def __init__(self, config: DecoderConfig, channels: int, regions: int, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        E, H, V = config.embed_size, config.hidden_size, vocabulary_size
        self.attends = config.attention_heads > 0
        A = H if self.attends else 0  # attention width
        if self.attends and A % config.attention_heads:
            raise ConfigError(f"hidden_size {H} is not a multiple of attention_heads {config.attention_heads}")
        cell = CELLS[config.cell]
        self.embedding = nn.Embedding(V, E, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=E**-0.5)
        self.region = nn.Linear(channels, H)
        self.region_norm = nn.LayerNorm(H)
        self.start = nn.Linear(H, cell.states * H)
        self.layer1 = cell(E + A if config.feed_attention else E, H)
        if self.attends:
            self.position = nn.Parameter(torch.zeros(regions, A))  # where in the grid a region lies
            self.query = nn.Linear(H, A)
            self.key = nn.Linear(A, A)
            self.value = nn.Linear(A, A)
        self.sentinel = nn.Linear(H, 2 * A) if config.sentinel else None
        self.tag = nn.Linear(E, A) if config.tag_slots else None
        self.layer2 = cell(H + A, H) if config.layers == 2 else None
        self.output = nn.Linear(H + A, E)
        self.output_bias = nn.Parameter(torch.zeros(V))
        self.output_words = None if config.tied else nn.Parameter(torch.randn(V, E) * E**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        never = torch.zeros(V)
        never[[PAD, START, UNKNOWN]] = -1e4  # probability 0; finite, because a float16 graph must hold it
        self.register_buffer("never", never, persistent=False)
        self.never: Tensor

    @property
    def state_size(self) -> int:
        """S: width of the packed state of all layers."""
        return self.config.layers * self.layer1.states * self.config.hidden_size

    @property
    def gate_names(self) -> tuple[str, ...]:
        """What the last axis of `StepOutput.gates` holds."""
        return self.layer1.gate_names

    def memory(self, features: Tensor, tags: LikelyTags | None = None) -> Memory:
        """Region features (B, L, D) -> what decoding needs of the pictures. tags: theirs, with `tag_slots`."""
        x = self.region_norm(F.relu(self.region(features)))  # (B, L, A)
        start = torch.tanh(self.start(self.dropout(x.mean(1))))
        if not self.attends:
            return Memory(x[:, :0], x[:, :0], start)
        x = self.dropout(x + self.position)
        if tags is not None:
            x = torch.cat([x, self.places_of(tags)], 1)
        return Memory(self.key(x), self.value(x), start)

    def places_of(self, tags: LikelyTags) -> Tensor:
        """What the attention looks at in place of a region, for each of the tags: (B, M, A)."""
        assert self.tag is not None
        words = self.embedding(tags.words) * tags.probabilities[..., None]  # (B, M, E), each about 1 / sqrt(E)
        places: Tensor = self.dropout(self.tag(words * words.shape[-1] ** 0.5))
        return places

    def forward(self, memory: Memory, words: Tensor) -> Tensor:
        """Teacher forcing: words (B, N, T), N captions a picture -> logits (B, N, T, V).

        The logits of step t predict word t + 1. Equal to `step` applied T times.
        """
        return self.logits(self.outputs(memory, words))

    def outputs(self, memory: Memory, words: Tensor) -> Tensor:
        """Teacher forcing up to the output layer: (B, N, T) -> (B, N, T, E)."""
        B, N, T = words.shape
        x = self.dropout(self.embedding(words)).view(B * N, T, -1)
        start = memory.start.repeat_interleave(N, 0)  # (B * N, states * H)
        first: State = start.chunk(self.layer1.states, -1)
        seen: tuple[Tensor, ...] = ()  # what the attention brought
        if self.config.feed_attention:
            h1, context = self._feed(x, first, memory)
            seen = (context,)
        else:
            h1, _ = self.layer1.run(x, tuple(s.contiguous() for s in first))  # (B * N, T, H)
            if self.attends:
                context, _ = self._attend(h1.reshape(B, N * T, -1), memory)  # (B, N * T, A)
                seen = (context.view(B * N, T, -1),)
        h = self.dropout(h1)
        if self.layer2 is not None:
            h2, _ = self.layer2.run(torch.cat([h, *seen], -1), self.layer2.initial_state(B * N))
            h = self.dropout(h2)
        return self._out(h, *seen).view(B, N, T, -1)

    def initial_state(self, memory: Memory, beams: int) -> Tensor:
        """The packed state (B, K, S) before the first word."""
        start = memory.start[:, None].expand(-1, beams, -1)
        return F.pad(start, (0, self.state_size - start.shape[-1]))  # layer 2 starts from zeros

    def prepare(self) -> Prepared | None:
        """What `step` need not compute again; None with `feed_attention`, where layer 1 reads more than words."""
        if self.config.feed_attention:
            return None
        words = self.layer1.project(self.embedding.weight)
        if not self.attends:
            return Prepared(words, None, None)
        queries = [self.query] if self.sentinel is None else [self.query, self.sentinel]
        return Prepared(
            words,
            torch.cat([part.weight for part in queries]),
            torch.cat([part.bias for part in queries]),
        )

    def step(self, memory: Memory, words: Tensor, state: Tensor, prepared: Prepared | None = None) -> StepOutput:
        """One step: the last words (B, K) and the packed state (B, K, S) -> the next."""
        B, K = words.shape
        parts = state.view(B * K, -1).chunk(self.config.layers * self.layer1.states, -1)
        if prepared is None:
            x = self.embedding(words).view(B * K, -1)
            if self.config.feed_attention:
                before, _ = self._attend(parts[self.layer1.states - 1].view(B, K, -1), memory)
                x = torch.cat([x, before.view(B * K, -1)], -1)
            x = self.layer1.project(x)
        else:
            x = F.embedding(words, prepared.words).view(B * K, -1)
        steps = [self.layer1.advance(x, parts[: self.layer1.states])]
        seen: tuple[Tensor, ...] = ()  # what the attention brings
        attention = None
        if self.attends:
            context, attention = self._attend(steps[0].hidden.view(B, K, -1), memory, prepared)
            seen = (context.view(B * K, -1),)
        if self.layer2 is not None:
            x2 = torch.cat([steps[0].hidden, *seen], -1)
            steps.append(self.layer2(x2, parts[self.layer1.states :]))
        logits = self.logits(self._out(steps[-1].hidden, *seen)).view(B, K, -1)
        gates = torch.stack([summarise(step.gates) for step in steps], -2)
        return StepOutput(
            logits,
            torch.cat([part for step in steps for part in step.state], -1).view(B, K, -1),
            attention,
            gates.view(B, K, len(steps), -1),
        )

    def log_probabilities(self, logits: Tensor, temperature: float) -> Tensor:
        """Logits (..., V) -> log-probabilities of what may be said: pad, start and unknown get -1e4."""
        return (logits / temperature + self.never).log_softmax(-1)

    def _attend(self, h: Tensor, memory: Memory, prepared: Prepared | None = None) -> tuple[Tensor, Tensor]:
        """Scaled dot-product attention (Vaswani et al. 2017) over regions, and tags: h (B, Q, H) -> (B, Q, A), weights.

        The weights are (B, Q, L + M + 1).
        """
        B, Q, _ = h.shape
        q, *own = self._queries(h, prepared)  # (B, heads, Q, A / heads)
        q = q * q.shape[-1] ** -0.5
        k, v = self._split(memory.keys), self._split(memory.values)  # (B, heads, L + M, A / heads)
        scores = q @ k.transpose(-2, -1)  # (B, heads, Q, L + M)
        if not own:
            weights = scores.softmax(-1)
            context = weights @ v
            attention = F.pad(weights.mean(1), (0, 1))
        else:
            # Adaptive attention (Lu et al. 2017): what layer 1 remembers competes with the regions.
            k_s, v_s = own
            weights = torch.cat([scores, (q * k_s).sum(-1, keepdim=True)], -1).softmax(-1)
            context = weights[..., :-1] @ v + weights[..., -1:] * v_s
            attention = weights.mean(1)
        return context.transpose(1, 2).reshape(B, Q, -1), attention

    def _queries(self, h: Tensor, prepared: Prepared | None) -> list[Tensor]:
        """h (B, Q, H) -> the query and, with a sentinel, its key and value, each (B, heads, Q, A / heads)."""
        A = self.config.hidden_size
        if prepared is not None and prepared.query_weight is not None:
            parts = F.linear(h, prepared.query_weight, prepared.query_bias).split(A, -1)
        elif self.sentinel is None:
            parts = (self.query(h),)
        else:
            parts = (self.query(h), *self.sentinel(h).split(A, -1))
        return [self._split(part) for part in parts]

    def _feed(self, x: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor]:
        """Layer 1 with attention feeding: word vectors (B * N, T, E) -> hidden states and contexts (B * N, T, H or A).

        The first word comes with what layer 1's first state looks at.
        """
        B = memory.keys.shape[0]
        context, _ = self._attend(state[-1].reshape(B, len(x) // B, -1), memory)
        hidden, contexts = [], []
        for word in x.unbind(1):
            state = self.layer1(torch.cat([word, self.dropout(context).view(len(x), -1)], -1), state).state
            context, _ = self._attend(state[-1].view(B, len(x) // B, -1), memory)
            hidden.append(state[-1])
            contexts.append(context.view(len(x), -1))
        return torch.stack(hidden, 1), torch.stack(contexts, 1)

    def _split(self, x: Tensor) -> Tensor:
        B, Q, _ = x.shape
        return x.view(B, Q, self.config.attention_heads, -1).transpose(1, 2)

    def _out(self, h: Tensor, *seen: Tensor) -> Tensor:
        """The first part of V in h_t = sigma(V s_t): the cell's output (..., H), and what attention saw -> (..., E)."""
        out: Tensor = self.dropout(torch.tanh(self.output(torch.cat([h, *seen], -1))))
        return out

    def logits(self, outputs: Tensor) -> Tensor:
        """The rest of V, a line a word: outputs (..., E) -> logits (..., V). `log_probabilities` is its sigma.

        The lines are the word vectors themselves (Press & Wolf 2017) unless untied.
        """
        words = self.embedding.weight if self.output_words is None else self.output_words
        return F.linear(outputs, words, self.output_bias)
