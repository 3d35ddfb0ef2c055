from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import load_dataset

from caption_client import dataset
from caption_client.files import ForeignFileError
from tests.pictures import plain


def test_a_name_leads_from_the_table_to_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "set" / "metadata.jsonl"
    assert dataset.file_name(str(tmp_path / "set" / "deep" / "..." / "a.png"), table) == "deep/.../a.png"
    monkeypatch.chdir(tmp_path)
    assert dataset.file_name("set/a.png", Path("set/metadata.jsonl")) == "a.png"
    assert dataset.file_name("set/a.png", None) == "set/a.png"
    with pytest.raises(ValueError, match="not below"):
        dataset.file_name("a.png", table)
    with pytest.raises(ValueError, match="not UTF-8"):
        dataset.file_name("set/\udcff.png", table)


def test_tags_follow_the_text_after_commas() -> None:
    assert dataset.text_of("A dog.", [], "p ", "") == "p A dog."
    assert dataset.text_of("A dog.", ["dog", "grass"], "", "") == "A dog, dog, grass"
    assert dataset.text_of("A dog.", ["dog"], "", " --ar 3:2") == "A dog. --ar 3:2, dog"


def write(path: Path, names: list[str], *, go_on: bool = True, force: bool = False) -> None:
    with dataset.parquet(path, go_on=go_on, force=force) as file:
        for name in names:
            print(json.dumps({"file_name": name, "text": f"Of {name}.", "confidence": 0.5, "tags": ["dog"]}), file=file)


def test_image_folder_is_read_by_datasets(tmp_path: Path) -> None:
    """Both tables, by the library that they are made for."""
    for suffix in ("jsonl", "parquet"):
        folder = tmp_path / suffix
        folder.mkdir()
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(plain((200, 20, 20)))
        write(folder / "metadata.parquet", ["a.png", "b.png"])
        if suffix == "jsonl":
            rows = pyarrow.parquet.read_table(folder / "metadata.parquet").to_pylist()
            (folder / "metadata.parquet").unlink()
            (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        loaded = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded["text"][:] == ["Of a.png.", "Of b.png."]
        assert loaded["tags"][:] == [["dog"], ["dog"]]
        assert loaded[0]["image"].size == (24, 16)


def test_parquet_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    write(path, ["a.png"])
    assert dataset.done(path) == {"a.png"}
    dataset.journal(path).write_text(json.dumps({"file_name": "b.png", "text": "B.", "confidence": 0.5}) + "\n")
    assert dataset.done(path) == {"a.png", "b.png"}
    write(path, ["c.png"])
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [(row["file_name"], row["tags"]) for row in rows] == [
        ("a.png", ["dog"]), ("b.png", None), ("c.png", ["dog"])
    ]  # fmt: skip
    assert os.listdir(tmp_path) == [path.name]
    write(path, ["d.png"], go_on=False)
    assert dataset.done(path) == {"d.png"}


@pytest.mark.parametrize("foreign", ["a table", "notes"])
def test_another_programs_parquet_file_is_not_changed(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "captions.parquet"
    path.write_text("my notes")
    if foreign == "a table":
        pyarrow.parquet.write_table(pa.table({"file_name": ["mine.png"], "text": ["by hand"]}), path)
    before = path.read_bytes()
    with pytest.raises(ForeignFileError, match="--parquet"):
        write(path, ["a.png"])
    with pytest.raises(ForeignFileError):
        dataset.done(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    write(path, ["a.png"], force=True)
    assert dataset.done(path) == {"a.png"}
