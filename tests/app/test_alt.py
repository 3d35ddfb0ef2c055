from __future__ import annotations

import pytest

from app.alt import MAX_ALT, alt_text

LONG = (
    "A man in a red shirt and a blue hat rides a bicycle down a narrow street of an old town "
    "past people who wait for a bus"
)


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("A brown dog runs through the grass.", "A brown dog runs through the grass."),
        ("A photo of a brown dog.", "A brown dog."),
        ("A black and white photograph of two people.", "Two people."),
        ("This is a picture of a cat.", "A cat."),
        ("An old image showing a street.", "A street."),
        ("A man takes a picture of a dog.", "A man takes a picture of a dog."),
        ("A framed picture of a dog on a wall.", "A framed picture of a dog on a wall."),
        ("Pictures of.", "Pictures of."),
        ("A picture of .", "A picture of ."),
        ("", ""),
        ("一只狗在草地上奔跑。", "一只狗在草地上奔跑。"),
        (f"{LONG}.", f"{LONG[:121]}."),
        (f"{LONG} in the city.", f"{LONG[:121]}."),
        ("word " * 24 + "four and the of in.", "word " * 23 + "word four."),
    ],
)
def test_a_caption_becomes_alternative_text(caption: str, text: str) -> None:
    assert alt_text(caption) == text
    assert alt_text(text) == text


@pytest.mark.parametrize("caption", [f"{LONG} in the city.", "word " * 50, "w" * 300, "狗" * 300, "of " * 100])
def test_it_is_never_too_long(caption: str) -> None:
    assert 0 < len(alt_text(caption)) <= MAX_ALT
