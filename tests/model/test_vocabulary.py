from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import CheckpointError
from model.vocabulary import END, PAD, SPECIAL, START, UNKNOWN, Vocabulary, runs_of, sentence, words_of, written_of

words = st.text("abcdefgé", min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog runs .", ["a", "dog", "runs"]),
        ("Two T-shirts, the man's!", ["two", "t-shirts", "the", "man's"]),
        ("the man’s hat", ["the", "man's", "hat"]),
        ("  tabs\tand\nlines ", ["tabs", "and", "lines"]),
        ("Ein Mädchen läuft", ["ein", "mädchen", "läuft"]),
        ("under_score -dash- 'quoted'", ["under", "score", "dash", "quoted"]),
        ("<start> <pad>", ["start", "pad"]),
        ("...", []),
        ("A\u0308rger mit Ka\u0308se", ["ärger", "mit", "käse"]),
        ("كَلْبٌ يَجْرِي.", ["كَلْبٌ", "يَجْرِي"]),
        ("एक कुत्ता दौड़ रहा है।", ["एक", "कुत्ता", "दौड\u093c", "रहा", "है"]),
        ("او می\u200cرود", ["او", "می\u200cرود"]),  # the non-joiner is inside a Persian word
        ("\u200fשלום\u200f, soft\u00adhyphen", ["שלום", "softhyphen"]),
        ("红色T恤，自行车。", ["红", "色", "t", "恤", "自", "行", "车"]),
        ("犬がボールを追う", ["犬", "が", "ボ", "ー", "ル", "を", "追", "う"]),
        ("ที่นี่ ៖ ស្រី", ["ที่", "นี่", "ស្រី"]),  # a Khmer letter stands under another
        ("개가 달린다", ["개가", "달린다"]),
        (
            "50% off, $5 and/or 5 € at A&B #8",
            ["50", "%", "off", "$", "5", "and", "/", "or", "5", "€", "at", "a", "&", "b", "#", "8"],
        ),
        ("fun🎉👍🏽👨\u200d👩\u200d👧🇩🇪🇫🇷 ❤\ufe0f", ["fun", "🎉", "👍🏽", "👨\u200d👩\u200d👧", "🇩🇪", "🇫🇷", "❤\ufe0f"]),
    ],
)
def test_words_are_lower_case_without_punctuation(text: str, expected: list[str]) -> None:
    assert words_of(text) == expected


@settings(deadline=None)  # the first call makes the patterns
@given(st.lists(words, max_size=8))
def test_words_survive_being_joined(some: list[str]) -> None:
    assert words_of(" ".join(some)) == some


def test_built_from_frequent_words_most_frequent_first() -> None:
    vocabulary = Vocabulary.build(["a dog a cat", "a dog", "a zebra", "bird, cat"], min_count=2)
    assert vocabulary.words == (*SPECIAL, "a", "cat", "dog")  # cat and dog tie: by the alphabet
    assert len(Vocabulary.build(["a b", "a"], min_count=1)) == len(SPECIAL) + 2


@settings(deadline=None)
@given(st.lists(words, unique=True, min_size=1, max_size=20), st.data())
def test_known_words_come_back(known: list[str], data: st.DataObject) -> None:
    vocabulary = Vocabulary((*SPECIAL, *known))
    said = data.draw(st.lists(st.sampled_from(known), max_size=10))
    ids = vocabulary.encode(" ".join(said))
    assert vocabulary.decode([START, *ids, END, PAD, PAD]) == said
    assert all(0 <= i < len(vocabulary) for i in ids)


def test_unknown_words_have_an_id_and_are_never_said() -> None:
    vocabulary = Vocabulary((*SPECIAL, "a", "dog"))
    assert vocabulary.encode("A purple dog") == [4, UNKNOWN, 5]
    assert vocabulary.decode([4, UNKNOWN, 5]) == ["a", "dog"]
    assert [vocabulary.words[i] for i in (PAD, START, END, UNKNOWN)] == list(SPECIAL)


@pytest.mark.parametrize("damaged", [(), ("a",), (*SPECIAL[:3], "a"), (*SPECIAL, "a", "b", "a"), (*SPECIAL, "<end>")])
def test_a_damaged_vocabulary_is_refused(damaged: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match="vocabulary is damaged"):
        Vocabulary(damaged)


@given(st.lists(words, unique=True, min_size=2, max_size=6), st.data())
def test_the_fingerprint_tells_vocabularies_apart(known: list[str], data: st.DataObject) -> None:
    mine = Vocabulary((*SPECIAL, *known)).fingerprint()
    assert mine == Vocabulary([*SPECIAL, *known]).fingerprint()
    other = data.draw(st.permutations(known).filter(lambda order: order != known))
    assert mine != Vocabulary((*SPECIAL, *other)).fingerprint()
    assert mine != Vocabulary((*SPECIAL, *known[:-1])).fingerprint()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["a", "dog", "runs"], "A dog runs."),
        (["t-shirt"], "T-shirt."),
        (["éclairs"], "Éclairs."),
        ([], ""),
        (list("一只狗在跑"), "一只狗在跑。"),
        (["t", *"恤上写着", "nba"], "T恤上写着nba。"),  # most words decide
        (list("犬がボール"), "犬がボール。"),
        (["एक", "कुत्ता"], "एक कुत्ता।"),
        (["นั่", "ง", "อ", "ยู่"], "นั่งอยู่"),
        (["كلب", "يجري"], "كلب يجري."),
        (["ძაღლი", "დარბის"], "ძაღლი დარბის."),  # Georgian capitals are for headings
        (["собака", "бежит"], "Собака бежит."),
        (["개가", "달린다"], "개가 달린다."),
        (
            ["50", "%", "of", "$", "5", "and", "/", "or", "5", "€", "#", "8", "a", "&", "b"],
            "50% of $5 and/or 5€ #8 a & b.",
        ),
        (["fun", "🎉"], "Fun 🎉."),
    ],
)
def test_a_sentence_starts_with_a_capital_and_ends_with_a_stop(said: list[str], expected: str) -> None:
    assert sentence(said) == expected


@pytest.mark.parametrize(
    ("text", "written", "beginnings"),
    [
        ("Ein Hund. „Sitz!“, sagt er: Platz", ["Ein", "Hund", "Sitz", "sagt", "er", "Platz"], [0, 2, 5]),
        ("A\u0308rger im Bu\u0308ro", ["Ärger", "im", "Büro"], [0]),
        ("a man's T-shirt, so I said", ["a", "man's", "T-shirt", "so", "I", "said"], [0]),
        ("一只狗", ["一", "只", "狗"], [0]),
    ],
)
def test_words_as_they_are_written(text: str, written: list[str], beginnings: list[int]) -> None:
    found = list(written_of(text))
    assert [word for word, _ in found] == written
    assert [i for i, (_, begins) in enumerate(found) if begins] == beginnings
    assert [word.lower() for word in written] == words_of(text)


def test_capitals_within_a_sentence_come_back() -> None:
    vocabulary = Vocabulary((*SPECIAL, "ein", "hund", "rennt"), {"hund": "Hund"})
    ids = vocabulary.encode("EIN HUND RENNT")
    assert vocabulary.decode(ids) == ["ein", "hund", "rennt"]
    assert sentence(vocabulary.written(ids)) == "Ein Hund rennt."
    pieces = Vocabulary((*SPECIAL, "ein", "hun", "##d", "rennt"), {"hund": "Hund"})
    assert pieces.written(pieces.encode("ein hund rennt")) == ["ein", "Hund", "rennt"]
    assert vocabulary.fingerprint() == Vocabulary(vocabulary.words).fingerprint()  # the weights are the same
    with pytest.raises(CheckpointError, match="vocabulary is damaged"):
        Vocabulary(vocabulary.words, {"hund": "Katze"})


PIECES = Vocabulary((*SPECIAL, "a", "s", "skate", "##s", "##board", "##er", "##e", "##r"))


def test_words_are_cut_into_the_longest_pieces_known() -> None:
    cut = [PIECES.words[i] for i in PIECES.encode("A skateboarder skates")]
    assert cut == ["a", "skate", "##board", "##er", "skate", "##s"]
    assert PIECES.encode("a xylophone") == [4, UNKNOWN]


def test_pieces_are_joined_to_words() -> None:
    ids = PIECES.encode("a skateboarder")
    assert PIECES.decode([START, *ids, END, PAD]) == ["a", "skateboarder"]
    assert PIECES.decode(ids[2:]) == ["boarder"]  # a piece that has nothing to go on with


def test_a_script_without_spaces_is_cut_into_pieces_and_comes_back_as_letters() -> None:
    pieces = Vocabulary((*SPECIAL, "红", "红色", "##的", "##狗", "t", "恤"))
    assert runs_of("红色的狗 T恤，红") == ["红色的狗", "t", "恤", "红"]
    ids = pieces.encode("红色的狗，T恤。")
    assert [pieces.words[i] for i in ids] == ["红色", "##的", "##狗", "t", "恤"]
    assert pieces.decode(ids) == words_of("红色的狗，T恤。")
    assert pieces.counted([*ids, END]) == [*"红色的狗", "t", "恤", "<end>"]
    assert sentence(pieces.decode(ids)) == "红色的狗t恤。"


@pytest.mark.parametrize("words", [("a", "dog"), ("a", "do", "##g")])
def test_a_vocabulary_without_signs_encodes_as_if_there_were_none(words: tuple[str, ...]) -> None:
    """As one from before signs were kept does; one that has them uses them."""
    plain = Vocabulary((*SPECIAL, *words))
    assert plain.encode("a dog & a dog 🎉") == plain.encode("a dog a dog")
    signs = Vocabulary((*SPECIAL, *words, "&", "🎉"))
    assert signs.decode(signs.encode("a dog & a dog 🎉")) == ["a", "dog", "&", "a", "dog", "🎉"]
    assert plain.encode("a cat") == [4, UNKNOWN]


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_gives_words_that_survive_being_joined(text: str) -> None:
    assert words_of(" ".join(words_of(text))) == words_of(text)
    assert "".join(runs_of(text)) == "".join(words_of(text))


def test_scores_count_what_a_vocabulary_of_words_holds_as_it_is() -> None:
    ids = [4, UNKNOWN, END]
    assert Vocabulary((*SPECIAL, "a")).counted(ids) == ids
    assert PIECES.counted([4, 6, 8, END]) == ["a", "skateboard", "<end>"]
