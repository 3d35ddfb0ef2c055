"""The interface both engines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model import preprocess
from model.caption import Caption
from model.config import ModelConfig, SearchConfig
from model.constraints import FREE, Constraints
from model.rerank import Reranker, support
from model.search import Hypothesis, live_hypotheses
from model.vocabulary import Vocabulary

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "f32"]  # auto: bf16 and 8-bit weights where they are faster and measured to be as good


class Regions(ABC):
    """Encoded pictures, in whatever form the engine keeps them; one row a picture."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> Regions:
        """The pictures at `rows`, in that order."""

    @classmethod
    @abstractmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The pictures of all `parts`, one after another."""


class Lane(ABC):
    """Something that encodes and captions. Methods are blocking and to be called from one thread at a time."""

    @abstractmethod
    def encode(self, pixels: NDArray[np.uint8]) -> Regions:
        """(B, size, size, 3) uint8 RGB -> B encoded pictures."""

    @abstractmethod
    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        """For each picture its captions, best first: distinct, `search_config.num_captions` of them.

        `search_config` defaults to the checkpoint's own. `explain` fills `Token.explanation` and changes
        nothing else.
        """


class CaptionEngine(Lane):
    """Runs one checkpoint, each call with all of the device.

    No call may run beside one of a lane, but `encode` of a single picture may beside those of all lanes but one.
    """

    name: str  # "torch" or "openvino"
    device: str  # "cpu" or "cuda"
    precision = "f32"  # of the encoder's numbers: "int8", "bf16" or "f32"
    config: ModelConfig
    vocabulary: Vocabulary
    card: Mapping[str, Any]  # the model card's facts: data, terms, recipe, metrics, limits
    gains_from_batches = True  # whether several pictures are encoded faster at once than one after another
    searched_at_once = 1  # a lane's larger share is best a multiple of it; 1 where any number is searched for together

    things: NDArray[np.int64] | None = None  # (V,): the place of each thing's word among the tags (`tag_places`)
    reranker: Reranker | None = None  # puts the candidates of a beam search in order; None: the search's own order

    def tags(self, regions: Regions) -> NDArray[np.float32]:
        """(B, G): how likely each of `config.tags` is among the words that people use of a picture; G may be 0."""
        return np.zeros((len(regions), 0), np.float32)

    def constraints(self, search_config: SearchConfig) -> Constraints:
        """The words of `search_config` as tokens; raises `ConfigError` for words that the model does not know."""
        return (
            Constraints.of(search_config, self.vocabulary) if search_config.avoid or search_config.start_with else FREE
        )

    def candidates(self, search_config: SearchConfig) -> SearchConfig:
        """The search to run for `search_config`: all the hypotheses of its beam, where they are ranked anew."""
        if self.reranker is None or search_config.strategy != "beam":
            return search_config
        return replace(search_config, num_captions=live_hypotheses(search_config))

    def ranked(
        self,
        found: Sequence[Sequence[Hypothesis]],
        feature: NDArray[np.float32],
        tags: NDArray[np.float32],
        search_config: SearchConfig,
    ) -> list[list[Hypothesis]]:
        """Of each picture's candidates those that are asked for, best first. feature: (B, d). tags: (B, G)."""
        if self.reranker is not None and search_config.strategy == "beam":
            found = [self.reranker(mine, *seen) for mine, *seen in zip(found, feature, tags, strict=True)]
        wanted = [list(mine[: search_config.num_captions]) for mine in found]
        if self.things is None:
            return wanted
        return [
            [replace(h, support=support(h.words, self.things, seen)) for h in mine]
            for mine, seen in zip(wanted, tags, strict=True)
        ]

    @property
    def lanes(self) -> Sequence[Lane]:
        """What may run side by side, each with its share of the device; by default only the engine itself."""
        return (self,)

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Picture -> (size, size, 3) uint8 RGB, the encoder's input. Thread-safe."""
        return preprocess.to_pixels(image, self.config.preprocess)

    def caption(
        self, pixels: NDArray[np.uint8], search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        """`encode`, then `generate`."""
        return self.generate(self.encode(pixels), search_config, explain)

    def answers(
        self, pixels: Sequence[NDArray[np.uint8]], search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[tuple[list[Caption], NDArray[np.float32]] | Exception]:
        """Captions and tags' probabilities (G,) of each picture, as `generate` and `tags` give them for a batch.

        Of a picture that the engine fails on what it raised, which must not fail its neighbours.
        """
        if not pixels:
            return []
        try:
            regions = self.encode(np.stack(pixels))
            return list(zip(self.generate(regions, search_config, explain), self.tags(regions), strict=True))
        except Exception as error:
            if len(pixels) == 1:
                return [error]
            return [self.answers([one], search_config, explain)[0] for one in pixels]

    def wants_review(self, caption: Caption) -> bool:
        """Whether a person should look at it, by the checkpoint's own measure."""
        return caption.reliability < self.config.review_below

    @property
    def warm_up_sizes(self) -> Sequence[int]:
        """Batch sizes that go different ways through the engine."""
        return (1,)

    def warm_up(self, batch_sizes: Sequence[int] | None = None) -> None:
        """Run blank pictures through once, so that the first real one is not slower.

        batch_sizes: by default all that go different ways through the engine.
        """
        size = self.config.preprocess.size
        for batch in batch_sizes or self.warm_up_sizes:
            self.caption(np.zeros((batch, size, size, 3), np.uint8))
