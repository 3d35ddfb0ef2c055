"""Captions as alternative text: what HTML's `alt` attribute and screen readers want of them."""

from __future__ import annotations

import re

MAX_ALT = 125  # characters: screen readers pause there, and editors of pages ask for no more

# A screen reader says that it is a picture; a picture frame on a wall is another thing, and stays.
_PICTURE_OF = re.compile(
    r"^(?:(?:this|there|here|it) is |it's )?(?:an? |the )?"
    r"(?:(?:black|white|and|color|colou?red|blurry|blurred|old|vintage|sepia|aerial|nice|beautiful|stock)[- ])*"
    r"(?:picture|photo|photograph|image|snapshot|pic)s? (?:of|showing|that shows|with) (?=\w)",
    re.IGNORECASE,
)
# What a sentence that is cut off must not end with.
_DANGLING = frozenset(
    ("a", "an", "the", "of", "in", "on", "at", "with", "and", "or", "to", "for", "from", "by", "near", "next", "into",
     "onto", "over", "under", "through", "while", "as", "is", "are", "that", "which", "who", "his", "her", "their",
     "its", "some", "two", "front")
)  # fmt: skip


def alt_text(caption: str) -> str:
    """One plain sentence of at most `MAX_ALT` characters, without 'a picture of' before it."""
    text = " ".join(caption.split())
    if found := _PICTURE_OF.match(text):
        text = text[found.end() :]
        text = text[:1].upper() + text[1:]
    if len(text) <= MAX_ALT:
        return text
    words = text[: MAX_ALT - 1].split(" ")
    if text[MAX_ALT - 1] != " ":
        words = words[:-1]  # the last one is cut in two
    while words and words[-1].lower().strip(",;") in _DANGLING:
        words.pop()
    # A script without spaces has no words to cut between.
    return (" ".join(words).rstrip(" ,;:") or text[: MAX_ALT - 1]) + "."
