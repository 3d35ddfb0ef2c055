"""Words, or pieces of words, to ids and back, and caption text out."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby, pairwise

from model.errors import CheckpointError

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

CONTINUES = "##"  # what a piece that goes on with a word begins with; no word can

# Scripts written without spaces between words: there every letter with its marks stands for itself.
_HAN_KANA = (
    "\u3005-\u3007\u3031-\u3035\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U000323af"
)
_THAI_LAO_MYANMAR_KHMER = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u104e-\u108f\u109a-\u109f\uaa60-\uaa7f\ua9e0-\ua9ef\ua9fa-\ua9fe"
    "\u1780-\u17d3\u17d7\u17dc\u17dd"
)
_SPACELESS = _HAN_KANA + _THAI_LAO_MYANMAR_KHMER
_EMOJI = "\u203c\u2049\u231a-\u231b\u23e9-\u23fa\u2600-\u27bf\u2b05-\u2b55\u3030\U0001f000-\U0001faff"
_STACKS = "\u1039\u17d2"  # Burmese and Khmer marks that put the next letter under the last one
_JOINER = "\u200d"  # joins emoji, and letters of Indian scripts
_UNSEEN = dict.fromkeys(
    map(ord, "\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")
)

# The full stop of scripts that have their own; "." elsewhere.
_STOPS = {
    "CJK": "。", "HIRAGANA": "。", "KATAKANA": "。", "BOPOMOFO": "。", "DEVANAGARI": "।", "BENGALI": "।",
    "GURMUKHI": "।", "ORIYA": "।", "THAI": "", "LAO": "", "KHMER": "។", "MYANMAR": "။", "ETHIOPIC": "።",
    "ARMENIAN": "։",
}  # fmt: skip


_SPACELESS_LETTER, _HAN_KANA_LETTER = (re.compile(f"[{letters}]") for letters in (_SPACELESS, _HAN_KANA))


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What `words_of` and `runs_of` find; made when first needed, in serving seldom."""
    marks = f"[{_of_category('M')}]*"
    letter = f"[^\\W_{_SPACELESS}]{marks}(?:{_JOINER}|\u200c(?=\\w))?"  # \u200c keeps letters of a word apart
    single = f"[{_SPACELESS}]{marks}(?:(?<=[{_STACKS}])[{_SPACELESS}]{marks})*"
    emoji = f"[{_EMOJI}]{marks}[\U0001f3fb-\U0001f3ff]?[\U000e0020-\U000e007f]*"
    rest = (
        f"(?:{letter})+(?:['-](?:{letter})+)*|[\U0001f1e6-\U0001f1ff]{{2}}|{emoji}(?:{_JOINER}{emoji})*"
        f"|[{_of_category('Sc')}%‰/&#]"
    )
    return re.compile(f"{single}|{rest}"), re.compile(f"(?:{single})+|{rest}")


def _of_category(wanted: str) -> str:
    """The characters whose Unicode category begins with `wanted`, as ranges of a character class."""
    # Above U+1FFFF there are Han characters, and the marks of U+E0100 that choose between their shapes.
    points = [i for i in (*range(0x20000), *range(0xE0100, 0xE01F0)) if unicodedata.category(chr(i)).startswith(wanted)]
    runs = [[i for _, i in group] for _, group in groupby(enumerate(points), lambda pair: pair[1] - pair[0])]
    return "".join(f"{re.escape(chr(run[0]))}-{re.escape(chr(run[-1]))}" for run in runs)


def words_of(text: str) -> list[str]:
    """A caption as people write it -> lower-case words without punctuation ("T-shirt" stays one word), in NFC.

    Where a script puts no spaces between words each letter with its marks is one. Emoji and the signs of money,
    `%`, `/`, `&` and `#` are words of their own.
    """
    return _patterns()[0].findall(_tidy(text))


def runs_of(text: str) -> list[str]:
    """The same, but what a script without spaces writes in one go stays together, for pieces to be cut from."""
    return _patterns()[1].findall(_tidy(text))


def is_spaceless(letter: str) -> bool:
    """Whether a letter is of a script without spaces between words."""
    return _SPACELESS_LETTER.match(letter) is not None


def written_of(text: str) -> Iterator[tuple[str, bool]]:
    """The words of a caption with the capitals they are written with, and whether each begins a sentence."""
    text = _tidy(text, lower=False)
    for found in _patterns()[0].finditer(text):
        before = text[: found.start()].rstrip(" \t\n\"'“„«»‘(-–—")
        yield found[0], not before or before[-1] in ".!?:;…"


def _tidy(text: str, lower: bool = True) -> str:
    text = unicodedata.normalize("NFC", (text.lower() if lower else text).translate(_UNSEEN))
    return text.replace("’", "'")


def _is_sign(word: str) -> bool:
    """Whether it is an emoji or a sign: a vocabulary that does not have it leaves it out, like punctuation."""
    return not word[0].isalnum()


class Vocabulary:
    """The tokens a decoder knows, special ones first; ids are positions.

    They are words, or, where any begins with `CONTINUES`, pieces of words ("skate", "##board") as
    `training.language.pieces` learns them: a word is cut from its start, the longest known piece each time. All are
    lower case; `capitals` has what is written otherwise within a sentence, such as German nouns: {"hund": "Hund"}.
    """

    def __init__(self, words: Sequence[str], capitals: Mapping[str, str] | None = None) -> None:
        if tuple(words[: len(SPECIAL)]) != SPECIAL or len(set(words)) != len(words):
            raise CheckpointError("the vocabulary is damaged: special words missing or words repeated")
        self.words = tuple(words)
        self.capitals = dict(capitals or {})
        if any(written.lower() != word for word, written in self.capitals.items()):
            raise CheckpointError("the vocabulary is damaged: capitals of another word")
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
        """Text -> ids of its words or of their pieces; unknown words become `UNKNOWN`; no start or end.

        A sign that is not in the vocabulary is left out: vocabularies of before have none.
        """
        if self.in_pieces:
            return [i for run in runs_of(text) for i in self._cut(run)]
        return [self._ids.get(word, UNKNOWN) for word in words_of(text) if word in self._ids or not _is_sign(word)]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Ids -> words, pieces joined, without the special ones."""
        words: list[str] = []
        for token in (self.words[i] for i in ids if i >= len(SPECIAL)):
            if words and token.startswith(CONTINUES):
                words[-1] += token.removeprefix(CONTINUES)
            else:
                words.append(token.removeprefix(CONTINUES))  # a first piece may have nothing to go on with
        if not self.in_pieces:
            return words
        return [word for run in words for word in (words_of(run) if _SPACELESS_LETTER.search(run) else [run])]

    def written(self, ids: Iterable[int]) -> list[str]:
        """Ids -> words as they are written within a sentence."""
        return [self.capitals.get(word, word) for word in self.decode(ids)]

    def counted(self, ids: Sequence[int]) -> Sequence[int | str]:
        """What n-gram scores count of a caption: its words, then the end if `ids` has it."""
        if not self.in_pieces:
            return ids
        return [*self.decode(ids), *(self.words[i] for i in ids if i == END)]

    def _cut(self, word: str) -> list[int]:
        """The pieces of a word; `UNKNOWN` where some letter of it is not known; nothing of an unknown sign."""
        ids = []
        start = 0
        while start < len(word):
            mark = CONTINUES if start else ""
            end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in self._ids), None)
            if end is None:
                return [] if _is_sign(word) else [UNKNOWN]
            ids.append(self._ids[mark + word[start:end]])
            start = end
        return ids

    def fingerprint(self) -> str:
        """A digest that changes with any word or its place; a checkpoint's weights carry it."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:16]


def sentence(words: Sequence[str]) -> str:
    """Words -> one sentence: first letter upper case, spaces and full stop as the script has them."""
    if not words:
        return ""
    text = words[0] + "".join(" " * _apart(*pair) + pair[1] for pair in pairwise(words))
    # Title case, not upper case: "ǆ" has a form of its own, and Georgian starts sentences with small letters.
    return text[:1].title() + text[1:] + _stop(words)


def _apart(before: str, after: str) -> bool:
    """Whether a space goes between two words."""
    if _HAN_KANA_LETTER.match(after) or _HAN_KANA_LETTER.match(before):
        return False
    if "/" in (before, after) or after in "%‰" or before == "#":
        return False
    if unicodedata.category(before[-1]) == "Sc" and after[0].isdigit():
        return False  # $5
    if unicodedata.category(after[0]) == "Sc" and before[-1].isdigit():
        return False  # 5€
    return not (_SPACELESS_LETTER.match(before) and _SPACELESS_LETTER.match(after))


def _stop(words: Sequence[str]) -> str:
    """The full stop of the script that most of the words are of."""
    letters = (next((x for x in word if x.isalpha()), "") for word in words)
    stops = Counter(_STOPS.get(unicodedata.name(x, "").partition(" ")[0], ".") for x in letters if x)
    return max(stops, key=stops.__getitem__, default=".")
