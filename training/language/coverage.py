"""Whether a vocabulary knows the captions it is to be trained on: told before training, not found out after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from model.vocabulary import SPECIAL, UNKNOWN, Vocabulary, runs_of, words_of
from training.data import DataError

UNKNOWN_SHARE = 0.1  # of the tokens, above which a warning is due
TOO_MANY_UNKNOWN = 0.5  # above which nothing of use can be learnt
FEW_WORDS = 20


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a vocabulary makes of captions.

    words: tokens it knows. unknown: share of the captions' tokens that it does not know. examples: of these the
    commonest. mean_length, longest: tokens a caption. repeating: for n of 2 to 4, the share of captions that say some
    n-gram of tokens twice, which `model.search.block_ngram` = n would forbid.
    """

    words: int
    tokens: int
    unknown: float
    examples: tuple[str, ...]
    mean_length: float
    longest: int
    repeating: dict[int, float]

    def warnings(self, block_ngram: int = 0) -> list[str]:
        """What is to be told before training; nothing where all is well."""
        told = []
        if self.unknown > UNKNOWN_SHARE:
            told.append(
                f"{self.unknown:.0%} of the captions' words are unknown (such as {', '.join(self.examples)}): lower "
                'min_count, or set vocabulary = "pieces"'
            )
        if self.words < FEW_WORDS:
            told.append(f"the vocabulary has only {self.words} words: lower min_count, or bring more captions")
        if block_ngram in self.repeating and self.repeating[block_ngram] > 0.1:
            told.append(
                f"{self.repeating[block_ngram]:.0%} of the captions say some {block_ngram} tokens twice, which "
                f"model.search.block_ngram = {block_ngram} forbids: set it to 0"
            )
        return told


def coverage(vocabulary: Vocabulary, captions: Iterable[str]) -> Coverage:
    """Count what `vocabulary` makes of `captions`."""
    captions = list(captions)
    encoded = Counter(tuple(vocabulary.encode(caption)) for caption in captions)
    lengths = {ids: len(ids) for ids in encoded}
    tokens = sum(lengths[ids] * count for ids, count in encoded.items())
    unknown = sum(ids.count(UNKNOWN) * count for ids, count in encoded.items())
    split = runs_of if vocabulary.in_pieces else words_of
    words = Counter(word for caption in captions for word in split(caption))
    strangers = Counter({word: count for word, count in words.items() if UNKNOWN in vocabulary.encode(word)})
    return Coverage(
        words=len(vocabulary) - len(SPECIAL),
        tokens=tokens,
        unknown=unknown / tokens if tokens else 1.0,
        examples=tuple(word for word, _ in strangers.most_common(5)),
        mean_length=tokens / max(len(captions), 1),
        longest=max(lengths.values(), default=0),
        repeating={
            n: sum(count for ids, count in encoded.items() if _repeats(ids, n)) / max(len(captions), 1)
            for n in (2, 3, 4)
        },
    )


def check(vocabulary: Vocabulary, captions: Iterable[str], block_ngram: int = 0) -> list[str]:
    """The warnings due before `captions` are trained on; `DataError` where that would be of no use."""
    found = coverage(vocabulary, captions)
    if found.words == 0 or not found.tokens:
        raise DataError(
            "no word of the captions is in the vocabulary, so there is nothing to learn: lower min_count (how often a "
            "word must occur), or bring more captions"
        )
    if found.unknown > TOO_MANY_UNKNOWN:
        raise DataError(
            f"the vocabulary of {found.words} words does not know {found.unknown:.0%} of the captions' words (such as "
            f'{", ".join(found.examples)}): lower min_count, set vocabulary = "pieces", or, with --init, start from a '
            "checkpoint of this language"
        )
    return found.warnings(block_ngram)


def _repeats(ids: tuple[int, ...], n: int) -> bool:
    grams = list(zip(*(ids[i:] for i in range(n)), strict=False))
    return len(set(grams)) < len(grams)
