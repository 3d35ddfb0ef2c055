"""A deterministic engine that explains itself: sentences chosen by the picture's colour, attention that wanders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.caption import Alternative, Caption, Explanation, Token
from model.config import ModelConfig, SearchConfig
from model.runtime.engine import CaptionEngine, Regions
from model.vocabulary import SPECIAL, Vocabulary

SENTENCES = (
    "a brown dog leaps to catch a red ball on the beach",
    "two children in yellow coats walk through the snow",
    "a man rides a bicycle down a narrow street",
    "a black cat sleeps on a wooden chair by the window",
    "people wait for a train at a busy station",
)

TAGS = ("dog", "snow", "street", "cat", "train")  # of each sentence its own is likely, the others less and less


class FakeRegions(Regions):
    """Which sentence is each picture's best."""

    def __init__(self, sentences: Sequence[int]) -> None:
        self.sentences = sentences

    def __len__(self) -> int:
        return len(self.sentences)

    def select(self, rows: Sequence[int]) -> FakeRegions:
        return FakeRegions([self.sentences[row] for row in rows])

    @classmethod
    def join(cls, parts: Sequence[FakeRegions]) -> FakeRegions:
        return cls([sentence for part in parts for sentence in part.sentences])


class FakeEngine(CaptionEngine):
    """Red pictures get the first sentence, green the second, blue the third, dark and light the last two."""

    name, device = "fake", "cpu"

    def __init__(self) -> None:
        # Sentences are 60 to 70 % sure; those about a train are not sure enough.
        self.config = ModelConfig(name="fake", version="1", tags=TAGS, review_below=0.56)
        self.vocabulary = Vocabulary((*SPECIAL, *dict.fromkeys(" ".join(("a photo of woman", *SENTENCES)).split())))
        self.card = {"data": "none"}

    def encode(self, pixels: NDArray[np.uint8]) -> FakeRegions:
        colours = pixels.reshape(len(pixels), -1, 3).mean(1)
        return FakeRegions([_sentence_for(colour) for colour in colours])

    def tags(self, regions: Regions) -> NDArray[np.float32]:
        assert isinstance(regions, FakeRegions)
        G = len(TAGS)
        return np.float32([[0.9 / 2 ** ((i - best) % G) for i in range(G)] for best in regions.sentences])

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        assert isinstance(regions, FakeRegions)
        search_config = search_config or self.config.search
        return [
            [_caption((best + rank) % len(SENTENCES), rank, explain) for rank in range(search_config.num_captions)]
            for best in regions.sentences
        ]


def _sentence_for(colour: NDArray[np.float64]) -> int:
    if np.ptp(colour) > 30:
        return int(colour.argmax())
    return 3 if colour.mean() < 128 else 4


def _caption(sentence: int, rank: int, explain: bool) -> Caption:
    words = [*SENTENCES[sentence].split(), "."]
    tokens = []
    for t, word in enumerate(words):
        wave = math.sin(1.7 * t + sentence)
        probability = 0.62 + 0.3 * wave - 0.05 * rank
        why = None
        if explain:
            layers = tuple(
                {
                    "forget": 0.68 + 0.2 * math.sin(t * 0.9 + layer),
                    "input": 0.42 + 0.25 * math.cos(t * 1.3 + layer),
                    "output": 0.5 + 0.2 * wave,
                    "candidate": 0.55 + 0.15 * math.cos(t + layer),
                    "state": 0.4 + 0.09 * t + 0.1 * layer,
                    "hidden": 0.3 + 0.15 * wave,
                }
                for layer in range(2)
            )
            rest = 1 - probability
            others = ("puppy", "wet", "jumps", "while", "frisbee")
            alternatives = tuple(Alternative(o, rest * 0.5 ** (k + 1)) for k, o in enumerate(others) if o != word)[:4]
            why = Explanation(_attention(t, len(words), 0.25), 0.25, layers, alternatives)
        tokens.append(Token(word, probability, why))
    text = f"{SENTENCES[sentence].capitalize()}."
    return Caption(text, sum(math.log(token.probability) for token in tokens), tuple(tokens))


def _attention(t: int, steps: int, sentinel: float, grid: int = 7) -> NDArray[np.float32]:
    """A spot that moves from the top left to the bottom right, summing to 1 less `sentinel`."""
    rows, columns = np.mgrid[:grid, :grid]
    at = (grid - 1) * t / max(steps - 1, 1)
    spot = np.exp(-((rows - at) ** 2 + (columns - at) ** 2) / 3) + 0.02
    return ((1 - sentinel) * spot / spot.sum()).astype(np.float32)
