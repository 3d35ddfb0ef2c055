from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.data.files import captions, jpeg, names, write, write_pictures
from training.data import DataError, read


def write_parquet(file: Path, columns: dict[str, Any]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file, row_group_size=2)


def test_parquet_with_pictures_inside(tmp_path: Path) -> None:
    content = [jpeg(size=(i + 1, 2)) for i in range(5)]
    columns = {
        "image": [{"bytes": picture, "path": f"p/{i}.jpg"} for i, picture in enumerate(content)],
        "caption": [["A dog", f"{i} dogs"] for i in range(5)],
    }
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", columns)
    columns = {"image": [{"bytes": jpeg(), "path": None}], "caption": [["A cat"]]}
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", columns)
    data = read(tmp_path, check_pictures=True)
    train = data.split("train")
    assert [picture.read_bytes() for picture in train] == content
    assert [picture.open().size for picture in train] == [(i + 1, 2) for i in range(5)]
    assert train[3].captions == ("A dog", "3 dogs")
    assert train[3].name == "train-00000-of-00001/000003-3.jpg"
    assert names(data, "val") == ["validation-00000-of-00001/000000"]


def test_parquet_that_names_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", {"file_name": ["a.jpg", "a.jpg", "b.jpg"], "text": ["one", "two", "three"]})
    write_pictures(tmp_path, "a.jpg", "b.jpg")
    assert captions(read(f"{tmp_path}:val=0")) == {"a.jpg": ("one", "two"), "b.jpg": ("three",)}


def test_parquet_without_pyarrow_or_broken_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "x.parquet", b"PAR1 no more")
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet"):
        read(file)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"x\.parquet: reading Parquet needs pyarrow \(pip install pyarrow\)"):
        read(file)
