"""caption-bulk: what it answers, and that a run whose processes are killed loses and doubles nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from app import bulk
from tests.app.fakes import POISON, FakeEngine
from tests.pictures import plain

ROOT = Path(__file__).parents[2]
JPEG = plain((200, 30, 30), "JPEG")


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
