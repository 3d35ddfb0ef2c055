from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.language.sides import TABLES, language_of, languages_of, mirrored


@pytest.mark.parametrize(
    ("language", "caption", "expected"),
    [
        ("en", "A man on the left, a dog on the right.", "a man on the right, a dog on the left."),
        ("en", "Left-handed player", "right-handed player"),
        ("en", "a bright leftover", "a bright leftover"),
        ("en", "A dog", "a dog"),
        ("en", "he raises his left arm", "he raises his right arm"),
        ("en", "a red circle left of a blue square", "a red circle right of a blue square"),
        ("en", "cars go from left to right", "cars go from right to left"),
        ("en", "men on the left and right, the leftmost sits", "men on the right and left, the rightmost sits"),
        ("en", "A man left the room", "a man left the room"),  # it stays true
        ("en", "he took his hat and left the room", "he took his hat and left the room"),
        ("en", "a dog standing right next to a cat", "a dog standing right next to a cat"),
        ("en", "it looks right", None),
        ("en", "he is left in the snow", None),
        ("en", "running the right way", None),
        ("en", "what is left of a house", None),
        ("en", "running clockwise", None),
        ("de", "Ein Mann mit dem linken Arm links vom Auto", "ein mann mit dem rechten arm rechts vom auto"),
        ("de", "rechter Fuß, linke Hand, linkes Bein", "linker fuß, rechte hand, rechtes bein"),
        ("de", "ein Linkshänder", "ein rechtshänder"),
        ("de", "ein Rechtsanwalt", None),
        ("de", "im rechten Winkel", None),
        ("de", "ein schlechter Hund", "ein schlechter hund"),
        ("fr", "un chien à gauche et un chat à droite", "un chien à droite et un chat à gauche"),
        ("fr", "la main gauche", "la main droite"),
        ("fr", "le bras droit", None),
        ("fr", "le bras gauche", None),  # "droit", which is said of the noun
        ("fr", "une ligne droite", None),
        ("es", "un perro a la izquierda, con la pata derecha", "un perro a la derecha, con la pata izquierda"),
        ("es", "sigue todo derecho", None),
        ("zh", "左边的人举着右手", "右边的人举着左手"),
        ("zh", "三十左右的人", "三十左右的人"),
        ("ja", "左の犬", "右の犬"),
        ("ar", "دائرة على يسار مربع", "دائرة على يمين مربع"),
        ("ar", "باليمين", None),
        ("hi", "एक वृत्त के बाएँ", "एक वृत्त के दाएँ"),
        (None, "en man till vänster", None),
        ("none", "Un Home", "un home"),
    ],
)
def test_left_and_right_change_places_where_they_surely_are_sides(
    language: str | None, caption: str, expected: str | None
) -> None:
    assert mirrored(caption, language) == expected


words = st.sampled_from(
    ["left", "right", "a", "the", "his", "man", "on", "to", "of", "and", "next", "way", "side", "leftmost", ".", ","]
)


@given(st.lists(words, max_size=12))
def test_mirroring_twice_gives_the_caption_back(said: list[str]) -> None:
    once = mirrored(" ".join(said))
    assert once is None or mirrored(once) == " ".join(said)


@pytest.mark.parametrize("language", TABLES)
def test_every_word_has_its_other_side(language: str) -> None:
    swaps = TABLES[language].swaps
    assert swaps
    assert {swaps[word] for word in swaps} == set(swaps)
    assert all(swaps[swaps[word]] == word != swaps[word] for word in swaps)


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["A dog runs on the beach", "Two men are in a boat"], "en"),
        (["Ein Hund läuft auf der Wiese", "Zwei Männer mit einem Boot"], "de"),
        (["Un chien court sur la plage", "Deux hommes dans un bateau"], "fr"),
        (["Un perro corre en la playa", "Dos hombres con un barco"], "es"),
        (["一只狗在沙滩上跑", "两个人在船上"], "zh"),
        (["犬が浜辺を走っている", "ボートに乗る二人の男"], "ja"),
        (["كلب يجري على الشاطئ", "رجلان في قارب"], "ar"),
        (["एक कुत्ता घास पर दौड़ रहा है", "नाव में दो आदमी"], "hi"),
        (["En hund springer på stranden", "Två män i en båt"], None),
        (["Een hond rent op het strand", "Twee mannen in de boot"], None),
        (["A dog runs on the beach", "Ein Hund läuft auf der Wiese und im Wasser"], None),
        (["..."], None),
    ],
)
def test_captions_tell_their_language(captions: list[str], expected: str | None) -> None:
    assert language_of(captions) == expected


def test_the_language_is_asked_for_each_set_and_an_unknown_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sets = {"one": ["A dog is on the beach"], "other": ["En hund springer", "El gos i el nen corren amb els amics"]}
    assert languages_of(sets, "auto") == {"one": "en", "other": None}
    assert "other: its captions are in none of the languages" in caplog.text
    assert languages_of(sets, "de") == {"one": "de", "other": "de"}
