from __future__ import annotations

import torch

from model.config import SearchConfig
from model.runtime.torch_engine import TorchStepper
from model.search import find_hypotheses
from model.vocabulary import START
from tests.model.tiny import decoder, memory


@torch.no_grad()
def test_hypotheses_go_on_from_their_parents() -> None:
    made = decoder()
    of = memory(made, 2)
    stepper = TorchStepper(made, of, temperature=1.5)
    start = stepper.start()
    assert start.tolist() == [[START], [START]]
    stepper.step(start, None)
    stepper.step(torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.zeros(2, 3, dtype=torch.int64))
    parents = torch.tensor([[2, 2, 0], [1, 0, 1]])
    words = torch.tensor([[10, 11, 4], [5, 6, 7]])
    log_probs = stepper.step(words, parents)
    for b in range(2):
        for k in range(3):
            before = [[4, 5, 6], [7, 8, 9]][b][parents[b, k]]
            forced = torch.tensor([[[START, before, words[b, k]]]] * 2)
            expected = made.log_probabilities(made(of, forced)[b, 0, -1], 1.5)
            torch.testing.assert_close(log_probs[b, k], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_search_can_start_anew() -> None:
    made = decoder()
    stepper = TorchStepper(made, memory(made, 3))
    first = find_hypotheses(stepper, SearchConfig(max_length=5))
    assert find_hypotheses(stepper, SearchConfig(max_length=5)) == first
