"""Words, or pieces of words, to ids and back, and caption text out."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from model.errors import CheckpointError

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

CONTINUES = "##"  # what a piece that goes on with a word begins with; no word can

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")  # letters and digits of any script


def words_of(text: str) -> list[str]:
    """A caption as people write it -> lower-case words without punctuation ("T-shirt" stays one word)."""
    return _WORD.findall(text.lower().replace("’", "'"))


class Vocabulary:
    """The tokens a decoder knows, special ones first; ids are positions.

    They are words, or, where any begins with `CONTINUES`, pieces of words ("skate", "##board") as
    `training.pieces` learns them: a word is cut from its start, the longest known piece each time.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if tuple(words[: len(SPECIAL)]) != SPECIAL or len(set(words)) != len(words):
            raise CheckpointError("the vocabulary is damaged: special words missing or words repeated")
        self.words = tuple(words)
        self.in_pieces = any(word.startswith(CONTINUES) for word in self.words)
        self._ids = {word: index for index, word in enumerate(self.words)}

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 5) -> Vocabulary:
        """Every word that occurs at least `min_count` times, most frequent first."""
        counts = Counter(word for caption in captions for word in words_of(caption))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        return cls((*SPECIAL, *kept))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Text -> ids of its words or of their pieces; unknown words become `UNKNOWN`; no start or end."""
        if self.in_pieces:
            return [i for word in words_of(text) for i in self._cut(word)]
        return [self._ids.get(word, UNKNOWN) for word in words_of(text)]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Ids -> words, pieces joined, without the special ones."""
        words: list[str] = []
        for token in (self.words[i] for i in ids if i >= len(SPECIAL)):
            if words and token.startswith(CONTINUES):
                words[-1] += token.removeprefix(CONTINUES)
            else:
                words.append(token.removeprefix(CONTINUES))  # a first piece may have nothing to go on with
        return words

    def counted(self, ids: Sequence[int]) -> Sequence[int | str]:
        """What n-gram scores count of a caption: its words, then the end if `ids` has it."""
        if not self.in_pieces:
            return ids
        return [*self.decode(ids), *(self.words[i] for i in ids if i == END)]

    def _cut(self, word: str) -> list[int]:
        """The pieces of a word; `UNKNOWN` where some letter of it is not known."""
        ids = []
        start = 0
        while start < len(word):
            mark = CONTINUES if start else ""
            end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in self._ids), None)
            if end is None:
                return [UNKNOWN]
            ids.append(self._ids[mark + word[start:end]])
            start = end
        return ids

    def fingerprint(self) -> str:
        """A digest that changes with any word or its place; a checkpoint's weights carry it."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:16]


def sentence(words: Sequence[str]) -> str:
    """Words -> one sentence: first letter upper case, full stop, no artefacts."""
    text = " ".join(words)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
