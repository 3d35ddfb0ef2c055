"""caption-bulk: what it finds, how it plans, and that a run whose processes are killed loses and doubles nothing."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app import bulk
from app.bulk_plan import BulkError, Item, Place, Plan, find, read
from tests.app.fakes import POISON, FakeEngine
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


# --- what there is ---------------------------------------------------------------------------------


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


# --- the plan ------------------------------------------------------------------------------------


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


# --- answers -------------------------------------------------------------------------------------


def test_a_picture_that_fails_does_not_fail_its_neighbours() -> None:
    import numpy as np

    engine = FakeEngine()
    size = engine.config.preprocess.size
    good, bad = np.zeros((size, size, 3), np.uint8), np.empty((size, size, 3), np.uint8)
    bad[:] = POISON
    first, second, third = bulk.captioned(engine, [good, bad, good])
    assert first == third
    assert not isinstance(first, str)
    assert isinstance(second, str)
    assert "failed" in second


def test_files_are_asked_for_again_but_not_those_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk.time, "sleep", lambda seconds: None)
    answers: list[Any] = [OSError("gone"), OSError("gone"), b"there"]

    def content() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    assert bulk._read_with_retry(content) == b"there"
    answers += [FileNotFoundError("missing"), b"no"]
    with pytest.raises(FileNotFoundError):
        bulk._read_with_retry(content)


# --- whole runs ----------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        [sys.executable, "-m", "app.bulk", *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def parts(folder: Path) -> int:
    return len(list(folder.glob("part-*.parquet")))


def until(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    while parts(folder) < count:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Those that caption; found by their name, which Ray sets."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "MapWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: .[ray]")
def test_killed_workers_and_a_killed_driver_lose_and_double_nothing(tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for i in range(120):
        (pictures / f"{i:03d}.jpg").write_bytes(plain((2 * i, 255 - 2 * i, 90), "JPEG"))
    (pictures / "broken.jpg").write_bytes(b"no picture")
    arguments = (str(pictures), "-o", str(out), "--workers", "2", "--shard", "4", "--sidecars")

    process = start(*arguments)
    until(out, 3, process)
    for worker in workers(process)[:1]:
        worker.kill()
    until(out, 8, process)
    rest = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(rest, timeout=120)  # Ray's own end with it
    done = parts(out)
    assert done < 31

    process = start(*arguments)
    said, _ = process.communicate()
    assert process.returncode == bulk.FAILED, said[-3000:]  # by the one that is broken
    assert f"121 pictures, 0 of them new; {121 - 4 * done} to do" in said or done == 0
    assert "1 x not a picture" in said
    table = pq.read_table(out)
    assert table.schema.equals(bulk.ANSWERS)
    rows = table.to_pylist()
    assert Counter(row["name"] for row in rows) == Counter(str(path) for path in pictures.glob("*.jpg"))
    for row in rows:
        assert bool(row["caption"]) != bool(row["error"])
        beside = Path(f"{row['name']}.txt")
        assert (beside.read_text().strip() if beside.exists() else None) == row["caption"]
    assert [row["name"] for row in rows if row["error"]] == [str(pictures / "broken.jpg")]
    process = start(*arguments)  # nothing to do: without Ray
    said, _ = process.communicate()
    assert (process.returncode, "0 to do" in said) == (0, True)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: .[ray]")
def test_without_an_address_no_cluster_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    joined: list[Any] = []

    def init(address: str, **options: Any) -> None:
        joined.append(address)
        raise OSError("not here")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "a.jpg").write_bytes(JPEG)
    arguments = [str(tmp_path), "-o", str(tmp_path / "out")]
    assert bulk.main(arguments) == bulk.USAGE
    assert bulk.main([*arguments, "--address", "auto"]) == bulk.USAGE
    assert joined == ["local", "auto"]


def test_what_cannot_start_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bulk.main([str(tmp_path), "-o", str(tmp_path / "out")]) == bulk.USAGE
    assert "no pictures found" in capsys.readouterr().err
    assert bulk.main(["x.jpg", "-o", "nothing://there"]) == bulk.USAGE
    assert "cannot be opened" in capsys.readouterr().err
    assert bulk.main(["x.jpg", "-o", str(tmp_path / "o"), "--model", str(tmp_path)]) == bulk.USAGE
