"""Captions of mirrored pictures: the words for left and right change places, in the languages known here.

Only a word that surely names a side is swapped. Where a caption has one that may mean something else ("it was
right on the edge"), nobody says anything of the mirrored picture in that caption's stead: it is left out.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from model.vocabulary import words_of

log = logging.getLogger(__name__)

# "auto": of each data set, the language of its captions, or no mirroring where it is none of these.
# "none": its captions name no sides, so pictures are mirrored and captions stay as they are.
Language = Literal["auto", "none", "en", "de", "fr", "es", "zh", "ja", "ar", "hi"]


@dataclass(frozen=True, slots=True)
class Sides:
    """How one language names the sides.

    swaps: word -> the word for the other side. It is swapped after one of the words `after` and before one of
    `before`; anywhere, where the language has neither. Otherwise it stays before one of the words `stays` has for
    it, since there it means something else, and is doubtful before all others.
    common: frequent words that tell the language from others.
    """

    swaps: Mapping[str, str]
    common: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()
    stays: Mapping[str, frozenset[str]] = field(default_factory=dict)
    always: frozenset[str] = frozenset()  # of `swaps`, those that are swapped anywhere
    kin: str = ""  # expression that other words for sides match, without their marks: they are doubtful
    doubtful: str = ""  # expression of texts that are doubtful as a whole


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _both(*pairs: str) -> dict[str, str]:
    """ "a/b" pairs -> a mapping both ways."""
    split = [pair.split("/") for pair in pairs]
    return {a: b for one, other in split for a, b in ((one, other), (other, one))}


_EN_ALWAYS = _both(
    "leftmost/rightmost", "leftward/rightward", "leftwards/rightwards", "lefthand/righthand",
    "lefthanded/righthanded",
)  # fmt: skip
_DE_TAILS = (
    "händer", "händerin", "händig", "händige", "händiger", "händigen", "seitig", "seitige", "seitigen", "kurve",
    "herum", "außen", "abbieger",
)  # fmt: skip
_AND = _words("and or to und oder et ou y o")  # between two sides

TABLES: Mapping[str, Sides] = {
    "en": Sides(
        swaps=_both("left/right") | _EN_ALWAYS,
        always=frozenset(_EN_ALWAYS),
        common=_words("a an the is are in on with and of at to his her while wearing"),
        after=_words(
            "the his her its their my your our to on far upper lower bottom top front back rear from facing looking "
            "turn turns turning leaning leans pointing points"
        ),
        before=_words(
            "side hand hands handed arm leg foot knee elbow shoulder eye ear ankle wrist hip thigh cheek corner edge "
            "half fist palm finger thumb glove paw paws shoe boot sleeve foreground background of"
        ),
        stays={
            "left": _words("the a an his her their its him them behind alone open unattended over out"),
            "right": _words(
                "next behind beside above below under underneath through into near by before after against outside "
                "inside up down over past off between out now"
            ),
        },
        kin=r"(?:left|right)(?:y|ie)|.*clockwise",
        doubtful=(
            r"\b(?:left|right)[ -](?:of[ -]way|way|time|things?|place|size|moment|one|track|angles?)\b"
            r"|\b(?:what|nothing|little|all|much|some|that)(?:'s| is| was)? left\b"
        ),
    ),
    "de": Sides(
        swaps=_both(*(f"link{e}/recht{e}" for e in ("e", "er", "en", "es", "em")), "links/rechts",
                    "linkerhand/rechterhand", *(f"links{tail}/rechts{tail}" for tail in _DE_TAILS)),
        common=_words("ein eine einen einem einer der die das dem den und mit auf im ist von zwei"),
        kin=r"links|rechts|(?:link|recht)er",
        doubtful=r"\brechten winkel",
    ),
    "fr": Sides(
        # "gauche" is of both genders; which of "droit" and "droite" it becomes hangs on the noun.
        swaps=_both("gauche/droite", "gauches/droites"),
        common=_words("une le les des du et avec dans sur qui est deux"),
        after=_words("à la de sa main jambe patte oreille épaule chaussure vers"),
        kin="droits?$|gaucher|droitier",
    ),
    "es": Sides(
        swaps=_both("izquierda/derecha", "izquierdo/derecho", "izquierdas/derechas", "izquierdos/derechos"),
        common=_words("una el los las y con del que está dos mientras"),
        after=_words("la su mano manos pierna oreja esquina parte pata brazo pie lado ojo hombro extremo borde a"),
        kin="zurd|diestr",
    ),
    "zh": Sides(_both("左/右")),
    "ja": Sides(_both("左/右")),
    "ar": Sides(
        swaps=_both("يسار/يمين", "اليسار/اليمين", "لليسار/لليمين", "يساره/يمينه", "يسارها/يمينها",
                    "يسارهم/يمينهم", "اليسرى/اليمنى", "الأيسر/الأيمن"),
        common=_words("في من على مع إلى و عن هو هي"),
        kin=".*(?:يسار|يمين|يسرى|يمنى|[أا]يسر|[أا]يمن)",
    ),
    "hi": Sides(
        swaps=_both("बाएं/दाएं", "बाएँ/दाएँ", "बायें/दायें", "बायां/दायां", "बायाँ/दायाँ", "बायीं/दायीं",
                    "बाईं/दाईं"),
        common=_words("एक है में और के की का पर से हैं रहा रही"),
        kin="[बद]ा(?:य|ए|ई)",
    ),
}  # fmt: skip
# Languages that might be taken for one of these, and have no table.
_OTHERS = {
    "nl": _words("een het en van op met die aan is zijn"),
    "sv": _words("en ett på och i med som har av til et og på med"),
    "it": _words("uno il di che con nel della sono si sta due"),
    "pt": _words("um uma o com no na do da e está"),
    "ca": _words("amb i de els les una té"),
    "fa": _words("یک در از به با که را است"),
    "ur": _words("ایک میں اور ہے کے کی کا پر"),
    "mr": _words("एक आहे आणि आहेत मध्ये वर"),
}
assert {*TABLES, "auto", "none"} == set(get_args(Language))

# Marks are no letters to `re`, so a word is what stands between spaces and punctuation.
_WORD = re.compile(r"[^\s.,;:!?।،؛\-()\"“”/]+")
_HAN, _KANA = ("\u3400", "\u9fff"), ("\u3041", "\u30ff")  # first and last


def mirrored(caption: str, language: str | None = "en") -> str | None:
    """The caption of the mirrored picture, lower-case; None where no true one is known.

    language: of `TABLES`; "none" changes no word; None is an unknown one.
    """
    text = unicodedata.normalize("NFC", caption.lower())
    if language == "none":
        return text
    if language in ("zh", "ja"):
        # Written one after the other they mean both sides, or "about".
        return re.sub("左右|[左右]", lambda found: TABLES[language].swaps.get(found[0], found[0]), text)
    table = TABLES.get(language or "")
    if table is None or (table.doubtful and re.search(table.doubtful, text)):
        return None
    found = list(_WORD.finditer(text))
    words = [match[0] for match in found]
    made, end = "", 0
    for i, word in enumerate(words):
        if word not in table.swaps:
            if table.kin and re.match(table.kin, _bare(word)):
                return None
            continue
        # A neighbour counts where nothing but spaces or hyphens is between.
        joined = [not text[a.end() : b.start()].strip(" -") for a, b in pairwise(found)]
        before = words[i - 1] if i and joined[i - 1] else ""
        after = words[i + 1] if i + 1 < len(words) and joined[i] else ""
        listed = before in _AND and i > 1 and words[i - 2] in table.swaps  # "left and right"
        swap = table.swaps[word] if listed else _swapped(table, word, before, after)
        if swap is None:
            return None
        made, end = made + text[end : found[i].start()] + swap, found[i].end()
    return made + text[end:]


def _swapped(table: Sides, word: str, before: str, after: str) -> str | None:
    """What stands for `word` in the mirrored caption: the other side, itself, or nothing that is sure."""
    if word in table.always or not (table.after or table.before):
        return table.swaps[word]
    if before in table.after or after in table.before:
        return table.swaps[word]
    return word if before and after in table.stays.get(word, ()) else None


def _bare(word: str) -> str:
    """A word without the vowel signs that Arabic may write or leave out."""
    return "".join(x for x in word if not "\u064b" <= x <= "\u0652")


def language_of(captions: Iterable[str]) -> str | None:
    """The language of `TABLES` that the captions are in; None where it is none of them, or not clear."""
    words = Counter(word for caption in captions for word in words_of(caption))
    total = words.total()
    if not total:
        return None
    han, kana = (sum(n for word, n in words.items() if low <= word[0] <= high) for low, high in (_HAN, _KANA))
    if han + kana > total / 2:
        return "ja" if kana > total / 20 else "zh"
    common = {name: table.common for name, table in TABLES.items()} | _OTHERS
    shares = Counter({name: sum(words[word] for word in frequent) / total for name, frequent in common.items()})
    (first, most), (_, next_most) = shares.most_common(2)
    return first if first in TABLES and most >= 0.1 and most >= 2 * next_most else None


def languages_of(captions: Mapping[str, Sequence[str]], language: str) -> dict[str, str | None]:
    """Of each data set the language to mirror its captions in: `language`, or what they are in where it is "auto"."""
    if language != "auto":
        return dict.fromkeys(captions, language)
    found = {source: language_of(mine) for source, mine in captions.items()}
    for source in (source for source, name in found.items() if name is None):
        log.warning(
            "%s: its captions are in none of the languages whose words for left and right are known (%s), so no "
            "picture of it is mirrored; where they name no sides, augment.language = \"none\" mirrors them",
            source, ", ".join(TABLES),
        )  # fmt: skip
    return found
