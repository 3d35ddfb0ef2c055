from __future__ import annotations

import numpy as np
import torch

from model import preprocess
from model.encoder import as_regions
from tests.model.tiny import SIZE, captioner, pictures


def test_normalises_like_preprocess() -> None:
    tiny, pixels = captioner(), pictures(2)
    ours = tiny.normalise(torch.from_numpy(pixels)).numpy()
    expected = preprocess.normalise(pixels, tiny.config.preprocess).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_from_pixels_and_words_to_logits() -> None:
    tiny = captioner()
    pixels = torch.from_numpy(pictures(2))
    words = torch.randint(4, len(tiny.vocabulary), (2, 3, 5))
    assert tiny.grid == (SIZE // 32, SIZE // 32)
    with torch.no_grad():
        logits = tiny(pixels, words)
        features = as_regions(tiny.encoder.stages(tiny.normalise(pixels)))
        expected = tiny.decoder(tiny.decoder.memory(features), words)
    assert logits.shape == (2, 3, 5, len(tiny.vocabulary))
    torch.testing.assert_close(logits, expected)
    assert (logits[0] - logits[1]).abs().max() > 0.1  # what is said depends on the picture


def test_only_weights_are_in_the_state() -> None:
    names = captioner().state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}
    assert "decoder.never" not in names
