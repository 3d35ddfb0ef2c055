from __future__ import annotations

import pytest

from training.capitals import learn_capitals


@pytest.mark.parametrize(
    ("captions", "learnt"),
    [
        (["Ein Hund jagt einen Ball.", "Zwei Hunde, ein Hund und ein Ball"], {"ball": "Ball", "hund": "Hund"}),
        (["A dog runs", "Dog on grass", "The Dog sleeps", "the dog barks"], {}),  # a beginning, and a minority
        (["a dog in Paris", "paris at night", "a view of Paris. Nice"], {"paris": "Paris"}),
        (["so I ran", "then I fell", "a NBA game", "the NBA ball"], {"i": "I", "nba": "NBA"}),
        (["A DOG ON A SOFA", "A CAT ON A SOFA", "Two Dogs On Sofas", "Two Cats On Sofas"], {}),  # headlines
        (["a view of Rome"], {}),  # once is chance
        (["Ein A\u0308rger ist da", "kein A\u0308rger da"], {"ärger": "Ärger"}),
        (["红色的狗", "एक कुत्ता", "كلب يجري"], {}),
        (["собака в Москве", "кошка в Москве"], {"москве": "Москве"}),
    ],
)
def test_what_is_written_with_capitals_within_a_sentence(captions: list[str], learnt: dict[str, str]) -> None:
    assert learn_capitals(captions) == learnt
