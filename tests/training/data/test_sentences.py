from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from training.data import CaptionData, DataError, Picture, read_sentences

NOTHING = CaptionData((), {})


def write(path: Path, lines: Sequence[object]) -> Path:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.gz"])
def test_one_tuple_a_line_in_the_order_of_the_files(tmp_path: Path, name: str) -> None:
    first = write(tmp_path / f"1-{name}", [{"captions": [" Ein  Hund\nrennt. ", "Zwei Bälle"], "id": 1}])
    second = write(tmp_path / f"2-{name}", [{"captions": ["A cat"]}])
    assert read_sentences([first, second], NOTHING) == [("Ein Hund rennt.", "Zwei Bälle"), ("A cat",)]


def test_sentences_of_the_held_out_parts_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pictures = [
        Picture(split, (caption,), split, source, Path("x"))
        for source, split, caption in (
            ("a", "train", "A boy sleeps"),
            ("a", "val", "A dog runs through the grass ."),
            ("b", "test", "Two cats"),
        )
    ]
    file = write(
        tmp_path / "text.jsonl",
        [
            {"captions": ["a dog runs, through the GRASS", "A dog runs"]},
            {"captions": ["Two cats!", " . "]},
            {"captions": ["A boy sleeps."]},
            {"captions": []},
        ],
    )
    assert read_sentences([file], CaptionData(tuple(pictures), {})) == [("A dog runs",), ("A boy sleeps.",)]
    assert "2 sentences of 2 pictures; left out: 2 with the words of a validation or test caption, 1 wit" in caplog.text


@pytest.mark.parametrize("line", [{"caption": "A dog"}, {"captions": "A dog"}, {"captions": [1]}, ["A dog"], "A dog"])
def test_another_layout_is_named_with_its_line(tmp_path: Path, line: object) -> None:
    file = write(tmp_path / "text.jsonl", [{"captions": ["A cat"]}, line])
    with pytest.raises(DataError, match=r"text\.jsonl, line 2: expected an object like"):
        read_sentences([file], NOTHING)


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    cut = write(tmp_path / "cut.jsonl.gz", [{"captions": [f"{i} dogs"]} for i in range(1000)])
    cut.write_bytes(cut.read_bytes()[:500])
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    (tmp_path / "latin.jsonl").write_bytes('{"captions": ["Bälle"]}'.encode("latin-1"))
    (tmp_path / "words.jsonl").write_text("A dog")
    for name in ("cut.jsonl.gz", "plain.jsonl.gz", "latin.jsonl", "gone.jsonl"):
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            read_sentences([tmp_path / name], NOTHING)
    with pytest.raises(DataError, match="line 1: expected an object"):
        read_sentences([tmp_path / "words.jsonl"], NOTHING)
