"""Learns the pieces of words that captions are made of: byte-pair encoding (Sennrich et al. 2016) of letters.

Every word starts as its letters; the pair of neighbouring pieces that occurs most often becomes one piece,
again and again. Only the list of pieces is kept: `model.vocabulary.Vocabulary` cuts words by it. Where a script
puts no spaces between words, all that is written in one go counts as one, and pieces grow into the words there are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from model.vocabulary import CONTINUES, SPECIAL, Vocabulary, runs_of

Pair = tuple[str, str]


def build_pieces(captions: Iterable[str], size: int, min_count: int = 5) -> Vocabulary:
    """A vocabulary of at most `size` pieces, special ones not counted: letters first, then by merging.

    Letters that occur fewer than `min_count` times, at the start of words or within them, are left out, and
    words with them are unknown.
    """
    words = Counter(word for caption in captions for word in runs_of(caption))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in _letters(word):
            letters[letter] += count
    kept = sorted(
        (letter for letter, count in letters.items() if count >= min_count), key=lambda piece: (-letters[piece], piece)
    )
    known = {word: count for word, count in words.items() if all(letters[x] >= min_count for x in _letters(word))}
    return Vocabulary((*SPECIAL, *dict.fromkeys((*kept[:size], *_merges(known, size - len(kept))))))


def _merges(words: dict[str, int], count: int) -> list[str]:
    """The first `count` pieces that merging gives, in order; fewer where every word is whole before."""
    cut = {word: _letters(word) for word in words}
    pairs: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[str]] = defaultdict(set)  # pair -> words that have it, or had it
    for word, pieces in cut.items():
        for pair in pairwise(pieces):
            pairs[pair] += words[word]
            places[pair].add(word)
    made: dict[str, None] = {}
    while len(made) < count and pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if pairs[best] <= 0:
            break
        made[_joined(best)] = None
        for word in places.pop(best):
            pieces = cut[word]
            for pair in pairwise(pieces):
                pairs[pair] -= words[word]
            cut[word] = pieces = _merge(pieces, best)
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
                places[pair].add(word)
        del pairs[best]
    return list(made)


def _letters(word: str) -> list[str]:
    return [word[0], *(CONTINUES + letter for letter in word[1:])]


def _joined(pair: Pair) -> str:
    return pair[0] + pair[1].removeprefix(CONTINUES)


def _merge(pieces: list[str], pair: Pair) -> list[str]:
    """`pieces` with each occurrence of the pair made one, from the left."""
    merged: list[str] = []
    i = 0
    while i < len(pieces):
        found = tuple(pieces[i : i + 2]) == pair
        merged.append(_joined(pair) if found else pieces[i])
        i += 2 if found else 1
    return merged
