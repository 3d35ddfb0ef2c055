"""What kind of mistake a poor caption makes: guessed by comparing its words with the references' words.

The rules below are all there is: no part-of-speech tagger, no synonyms, and the picture is never
looked at. They find candidates to look at and say which words made them think so. A caption may be
right in words that no reference uses, so a person's judgement, where given, replaces the guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = ("wrong object", "wrong action", "wrong count", "wrong colour", "hallucination", "other wording")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COLOURS = _words("red orange yellow green blue purple pink brown black white grey tan gold silver blond")
SAME_COLOUR = {"gray": "grey", "golden": "gold", "blonde": "blond"}
NUMBERS = {w: n for n, w in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], 1)}
PLURALS = {"men": "man", "women": "woman", "children": "child", "people": "person"}
# Words that name no thing, colour, number or action.
GRAMMAR = _words(
    """a an the and or but of in on at to by up as is are was be been being it its his her their he she they him them
    who that which this these those there with without for from into onto over under above below behind beside
    between near next front back side top bottom middle around across along through down off out away towards toward
    while during each other another one's own very all both something someone outside inside outdoors indoors has
    have having not no what where when so left right together about against past after before like
    group several many crowd bunch some"""
)
# Words in -ing that are no actions.
THINGS_IN_ING = _words(
    "building clothing railing ceiling string swing spring thing evening morning wedding painting nothing anything"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A kind of mistake, one of `KINDS`, with the words that show it; `judged` by a person, else guessed."""

    kind: str
    evidence: str
    judged: bool = False


@dataclass(frozen=True, slots=True)
class _Words:
    """One sentence, or several together, taken apart; what is kept by its stem shows the word itself."""

    colours: frozenset[str]
    numbers: frozenset[int]
    plain: tuple[str, ...]  # words of things and actions as they stand
    actions: dict[str, str]  # stem -> word, in the order said
    things: dict[str, str]  # singular -> word, in the order said


def verbs_of(texts: Iterable[Sequence[str]]) -> frozenset[str]:
    """Stems of the words in -ing: they tell "jumps" from "cups"."""
    return frozenset(_verb(word) for words in texts for word in words if _is_ing(word))


def guess(caption: Sequence[str], references: Sequence[Sequence[str]], verbs: frozenset[str]) -> list[Failure]:
    """The kinds of mistake that the words point to, gravest first; never empty.

    caption, references: lower-case words without punctuation. verbs: `verbs_of` the whole data set.
    wrong object: the first thing the caption names is in no reference. hallucination: a later one is.
    wrong action: a word in -ing, or one of `verbs` in -s, that is no reference's.
    wrong count, wrong colour: a number, singular, plural or colour that no reference has, while they do
    give another. other wording: every word is some reference's.
    """
    said = _take_apart(caption, verbs)
    true = _take_apart([word for words in references for word in words], verbs)
    known = {*true.things, *true.actions, *map(_verb, true.things)}

    def strange(words: dict[str, str]) -> list[str]:
        return [word for stem, word in words.items() if stem not in known and _verb(stem) not in known]

    found: list[Failure] = []

    things = strange(said.things)
    if things and things[0] == next(iter(said.things.values())):
        found.append(Failure("wrong object", f"no reference has “{things.pop(0)}”"))
    if actions := strange(said.actions):
        found.append(Failure("wrong action", f"no reference has “{actions[0]}”"))
    if count := _wrong_count(said, true):
        found.append(Failure("wrong count", count))
    if (colours := sorted(said.colours - true.colours)) and true.colours:
        found.append(Failure("wrong colour", f"“{colours[0]}”, references: {', '.join(sorted(true.colours))}"))
    if things:
        found.append(Failure("hallucination", f"no reference has “{'”, “'.join(things)}”"))
    return found or [Failure("other wording", "every word is in some reference")]


def read_judgements(file: Path) -> dict[str, Failure]:
    """What a person saw: a JSON object of picture name -> [kind, note]. Raises `ValueError` where malformed."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        judgements = {name: Failure(kind, note, judged=True) for name, (kind, note) in content.items()}
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file}: expected a JSON object of picture name -> [kind, note] ({error})") from error
    for name, failure in judgements.items():
        if failure.kind not in KINDS:
            raise ValueError(f"{file}: {failure.kind!r}, of {name}, is none of: {', '.join(KINDS)}")
    return judgements


def tally(failures: Iterable[Sequence[Failure]]) -> Mapping[str, int]:
    """How many captions fail first of all by each kind."""
    first = [kinds[0].kind for kinds in failures]
    return {kind: first.count(kind) for kind in KINDS}


def _take_apart(words: Sequence[str], verbs: frozenset[str]) -> _Words:
    colours, numbers = set(), set()
    plain: list[str] = []
    actions: dict[str, str] = {}
    things: dict[str, str] = {}
    for word in words:
        word = SAME_COLOUR.get(word, word)
        if word in COLOURS:
            colours.add(word)
        elif word in NUMBERS:
            numbers.add(NUMBERS[word])
        elif word not in GRAMMAR:
            plain.append(word)
            if _is_ing(word) or (word.endswith("s") and _verb(word) in verbs):
                actions.setdefault(_verb(word), word)
            else:
                things.setdefault(_singular(word), word)
    return _Words(frozenset(colours), frozenset(numbers), tuple(plain), actions, things)


def _wrong_count(said: _Words, true: _Words) -> str:
    """What is wrong about numbers, or about singular and plural of a thing both name; "" if nothing is."""
    if (numbers := said.numbers - true.numbers) and true.numbers:
        return f"{min(numbers)}, references: {', '.join(map(str, sorted(true.numbers)))}"
    for word in said.plain:
        others = [w for w in true.plain if _singular(w) == _singular(word)]
        if word not in others and others and _singular(word) in said.things:
            return f"“{word}”, references: “{others[0]}”"
    return ""


def _is_ing(word: str) -> bool:
    return word.endswith("ing") and len(word) > 4 and word not in THINGS_IN_ING


def _verb(word: str) -> str:
    """A rough stem that "runs", "running", "rides" and "riding" share with "run" and "ride"."""
    for ending in ("ing", "es", "ed", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 2:
            stem = word[: -len(ending)]
            break
    else:
        stem = word
    return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "sl" else stem


def _singular(word: str) -> str:
    """A rough singular."""
    if word in PLURALS:
        return PLURALS[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
