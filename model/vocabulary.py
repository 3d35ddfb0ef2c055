"""Words to ids and back, and caption text out."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from model.errors import CheckpointError

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")  # letters and digits of any script


def words_of(text: str) -> list[str]:
    """A caption as people write it -> lower-case words without punctuation ("T-shirt" stays one word)."""
    return _WORD.findall(text.lower().replace("’", "'"))


class Vocabulary:
    """The words a decoder knows, special ones first; ids are positions."""

    def __init__(self, words: Sequence[str]) -> None:
        if tuple(words[: len(SPECIAL)]) != SPECIAL or len(set(words)) != len(words):
            raise CheckpointError("the vocabulary is damaged: special words missing or words repeated")
        self.words = tuple(words)
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
        """Text -> ids of its words; unknown words become `UNKNOWN`; no start or end."""
        return [self._ids.get(word, UNKNOWN) for word in words_of(text)]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Ids -> words, without the special ones."""
        return [self.words[i] for i in ids if i >= len(SPECIAL)]

    def fingerprint(self) -> str:
        """A digest that changes with any word or its place; a checkpoint's weights carry it."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:16]


def sentence(words: Sequence[str]) -> str:
    """Words -> one sentence: first letter upper case, full stop, no artefacts."""
    text = " ".join(words)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
