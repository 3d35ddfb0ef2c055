from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import DataError
from training.data.listing import described, json_of, text_of


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\ufeff")), st.booleans(), st.booleans())
def test_text_is_what_was_written_whatever_the_system(
    tmp_path_factory: pytest.TempPathFactory, text: str, marked: bool, windows: bool
) -> None:
    file = tmp_path_factory.mktemp("text") / "captions.txt"
    written = text.replace("\n", "\r\n") if windows else text
    file.write_bytes(written.encode("utf-8-sig" if marked else "utf-8"))
    assert text_of(file) == text


def test_text_in_another_code_is_named_with_advice(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_bytes("Bäume".encode("latin-1"))
    with pytest.raises(DataError, match=r"captions\.txt: not UTF-8 text .* save it as UTF-8"):
        text_of(tmp_path / "captions.txt")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5), st.text(max_size=3))
def test_json_is_read_and_what_is_none_says_where(content: object, rest: str) -> None:
    assert json_of(json.dumps(content), "here") == content
    with pytest.raises(DataError, match=r"captions\.jsonl, line 3: not JSON"):
        json_of(json.dumps(content) + "," + rest, "captions.jsonl, line 3")


def test_one_is_a_picture_others_are_pictures() -> None:
    assert [described(range(count), "picture") for count in (0, 1, 2)] == ["0 pictures", "1 picture", "2 pictures"]
