"""What a bulk run finds, and how it plans."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.bulk_plan import BulkError, Item, Place, Plan, find, read
from tests.pictures import plain

ROOT = Path(__file__).parents[2]
JPEG = plain((200, 30, 30), "JPEG")


OTHER = plain((30, 200, 30), "JPEG")


def found(*inputs: str, column: str | None = None) -> tuple[list[Item], list[tuple[str, str]]]:
    troubles: list[tuple[str, str]] = []
    return list(find(inputs, column, lambda *trouble: troubles.append(trouble))), troubles


def contents(items: list[Item], column: str | None = None) -> dict[str, bytes]:
    return {item.name: content() for item, content in read(items, column)}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_folders_globs_and_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1.jpg", "a/b/2.JPG", "a/note.txt", "a/.hidden.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    wanted = [str(tmp_path / "a/1.jpg"), str(tmp_path / "a/b/2.JPG")]
    items, troubles = found(str(tmp_path / "a"))
    assert ([item.name for item in items], troubles) == (wanted, [])
    assert [item.name for item in found(str(tmp_path / "a/*.jpg"))[0]] == wanted[:1]
    assert contents(items) == dict.fromkeys(wanted, JPEG)
    assert found(str(tmp_path / "none"))[0] == [Item(str(tmp_path / "none"), str(tmp_path / "none"))]  # fails by itself


def test_a_tar_in_webdatasets_layout(tmp_path: Path) -> None:
    path = tmp_path / "0001.tar"
    write_tar(path, {"a.jpg": JPEG, "a.json": b"{}", "b.jpg": OTHER})
    items, _ = found(str(tmp_path))
    assert contents(items) == {f"{path}/a.jpg": JPEG, f"{path}/b.jpg": OTHER}


def test_a_broken_tar_is_told_and_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"nothing" * 1000)
    write_tar(tmp_path / "1.tar", {"a.jpg": JPEG})
    items, troubles = found(str(tmp_path))
    assert len(items) == 1
    assert [name for name, _ in troubles] == [str(tmp_path / "0.tar")]


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_of_pictures(tmp_path: Path, nested: bool) -> None:
    values: list[Any] = [JPEG, OTHER, None, JPEG]
    if nested:  # as Hugging Face's data sets have them
        values = [value and {"bytes": value, "path": None} for value in values]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": values, "number": [1, 2, 3, 4]}), path, row_group_size=2)
    items, _ = found(str(path))
    wanted = {f"{path}#0": JPEG, f"{path}#1": OTHER, f"{path}#2": b"", f"{path}#3": JPEG}
    assert contents(items) == wanted
    assert contents(items[3:]) == {f"{path}#3": JPEG}
    pq.write_table(pa.table({"pixels": [JPEG, OTHER], "key": ["x", "y"]}), path)
    assert contents(found(str(path))[0]) == {"x": JPEG, "y": OTHER}


def test_a_table_of_paths(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": ["a.jpg", str(tmp_path / "a.jpg")], "text": ["no", "no"]}), path)
    assert contents(found(str(path))[0]) == {"a.jpg": JPEG, str(tmp_path / "a.jpg"): JPEG}
    pq.write_table(pa.table({"where": ["a.jpg"]}), path)
    with pytest.raises(BulkError, match="--column"):
        found(str(path))
    assert contents(found(str(path), column="where")[0]) == {"a.jpg": JPEG}


def test_urls_by_pyarrow_and_by_fsspec(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jpg").write_bytes(JPEG)
    assert contents(found(f"file://{tmp_path}")[0]) == {f"file://{tmp_path}/deep/a.jpg": JPEG}
    assert contents(found(f"file://{tmp_path}/d*/*.jpg")[0]) == {f"file://{tmp_path}/deep/a.jpg": JPEG}
    memory = fsspec.filesystem("memory")
    memory.pipe("/bulk/b.jpg", OTHER)
    assert contents(found("memory://bulk")[0]) == {"memory://bulk/b.jpg": OTHER}
    with pytest.raises(BulkError, match="cannot be opened"):
        found("nothing://there")


def items(count: int, start: int = 0) -> list[Item]:
    return [Item(f"{i}.jpg", f"{i}.jpg") for i in range(start, start + count)]


def test_a_plan_stays_and_grows(tmp_path: Path) -> None:
    plan = Plan(Place(str(tmp_path / "out")))
    assert plan.extend(items(7), shard=3) == 7
    shards = list(plan.shards())
    assert [shard.pictures for shard in shards] == [3, 3, 1]
    assert plan.extend(items(7), shard=3) == 0
    assert plan.extend(items(9), shard=3) == 2
    assert list(plan.shards())[:3] == shards
    assert [item for shard in plan.shards() for item in plan.items(shard)] == items(9)
    assert len({shard.answers for shard in plan.shards()}) == 4
    (tmp_path / "out" / shards[1].answers).touch()
    assert shards[1] not in plan.left()
    assert len(plan.left()) == 3


def test_a_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    plan = Plan(Place(str(tmp_path)))
    plan.check({"model": "a"})
    plan.check({"model": "a"})
    with pytest.raises(BulkError, match="another run"):
        plan.check({"model": "b"})
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.parquet").touch()
    with pytest.raises(BulkError, match="other Parquet"):
        Plan(Place(str(tmp_path / "theirs"))).check({"model": "a"})


def test_what_is_written_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    place = Place(str(tmp_path)) / "part.parquet"
    with pytest.raises(ZeroDivisionError), place.written() as stream:
        stream.write(bytes([1 // 0]))
    assert list(tmp_path.iterdir()) == []
    with place.written() as stream:
        stream.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["part.parquet"]
