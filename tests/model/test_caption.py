from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.caption import Caption, Token


@given(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=20))
def test_confidence_is_the_geometric_mean_of_the_tokens(probabilities: list[float]) -> None:
    log_probability = math.fsum(map(math.log, probabilities))
    caption = Caption("A dog.", log_probability, tuple(Token("dog", p) for p in probabilities))
    assert caption.confidence == pytest.approx(math.prod(p ** (1 / len(probabilities)) for p in probabilities))
    assert min(probabilities) * 0.999 <= caption.confidence <= max(probabilities) * 1.001


def test_an_empty_caption_has_a_confidence() -> None:
    assert Caption("", 0.0).confidence == 1.0
