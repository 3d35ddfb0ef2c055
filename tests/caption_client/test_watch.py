"""Time is the test's: each look at the folder is followed by one step of a script, and the last one is Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from caption_client import cli, watch
from caption_client.client import CaptionError
from tests.app.fakes import FakeEngine
from tests.caption_client.test_cli import COLOURS, FakeServer, said
from tests.page.live import serving
from tests.pictures import plain

PICTURE = plain(COLOURS[0])
Step = Callable[[], object]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    FakeServer.asked, FakeServer.fails = [], None
    monkeypatch.setattr(cli, "CaptionClient", FakeServer)
    return FakeServer


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, steps: Iterable[Step], *more: str) -> tuple[int, list[float]]:
    """The exit status of `caption --watch` on a script, and the seconds it waited between looks."""
    waited: list[float] = []
    left = iter(steps)

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        step = next(left, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(watch.time, "sleep", sleep)
    monkeypatch.setattr(watch.time, "monotonic", lambda: 0.0)
    status = cli.main(["--watch", str(folder), "--write-alt", "sidecar", "--server", "http://there", *more])
    return status, waited


def nothing() -> None:
    """A look at which nothing has changed."""


def test_what_arrives_is_captioned_once_it_is_complete(
    tmp_path: Path, server: type[FakeServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = tmp_path / "a.png", tmp_path / "b.png"
    (tmp_path / "before.png").write_bytes(PICTURE)  # arrived while nobody watched
    (tmp_path / "done.png").write_bytes(PICTURE)
    (tmp_path / "done.png.txt").write_text("by hand")

    def arrives(part: bytes) -> Step:
        return lambda: (path.write_bytes(part), os.utime(path, ns=(0, len(part))))

    def captioned(*names: str) -> Step:
        def check() -> None:
            assert sorted(p.name for p in tmp_path.glob("*.txt")) == sorted(f"{name}.txt" for name in names)

        return check

    begun = ("before.png", "done.png")
    steps = [
        captioned("done.png"), captioned(*begun), arrives(b""), nothing, captioned(*begun), arrives(PICTURE[:30]),
        arrives(PICTURE[:50]), arrives(PICTURE), captioned(*begun), captioned(*begun, "a.png"),
        lambda: other.write_bytes(PICTURE), other.unlink, nothing, path.unlink, nothing, nothing,
    ]  # fmt: skip
    status, waited = run(monkeypatch, tmp_path, steps)
    out, err = capsys.readouterr()
    assert status == cli.OK, err
    assert out.splitlines() == [f"{tmp_path}/before.png: Red.", f"{tmp_path}/a.png: Red."]
    assert err.splitlines()[-1] == "caption: 3 pictures: 2 captioned, 1 skipped, 0 failed"
    assert (tmp_path / "done.png.txt").read_text() == "by hand"
    assert set(waited) == {watch.INTERVAL}


def test_a_broken_picture_is_told_at_once_and_tried_again_when_it_changes(
    tmp_path: Path, server: type[FakeServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE[:40])
    told: list[str] = []
    steps = [nothing, lambda: told.append(capsys.readouterr().err), nothing, nothing,
             lambda: path.write_bytes(PICTURE), nothing, nothing]  # fmt: skip
    status, _ = run(monkeypatch, tmp_path, steps)
    assert told == [f"caption: failed: {path}: cut off\n"]
    assert (tmp_path / "a.png.txt").read_text() == "Red.\n"
    assert status == cli.FAILED
    assert len(server.asked) == 2


def test_a_service_that_is_away_is_waited_for(
    tmp_path: Path, server: type[FakeServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(PICTURE)
    server.asked.append((0, {}))  # from the second request on it fails
    server.fails = CaptionError("no answer: refused")

    def back() -> None:
        server.fails = None

    def busy() -> None:
        server.fails = CaptionError("full", 503, "overloaded")

    status, waited = run(monkeypatch, tmp_path, [nothing, nothing, busy, nothing, back, nothing])
    assert status == cli.OK
    assert len(list(tmp_path.glob("*.txt"))) == 3
    assert waited == [2, 4, 8, 16, 32, 2, 2]
    err = capsys.readouterr().err
    assert err.count("waiting for the service: no answer: refused") == 1
    server.fails = CaptionError("wrong key", 401, "unauthorized")
    (tmp_path / "d.png").write_bytes(PICTURE)
    assert run(monkeypatch, tmp_path, [nothing, nothing])[0] == cli.USAGE
    assert "wrong key" in capsys.readouterr().err


def test_a_picture_that_changes_while_it_is_captioned_is_captioned_as_it_is_then(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    taken: list[bytes] = []

    class Outcome:
        name = str(path)

    def caption(names: Iterable[str]) -> Iterator[Outcome]:
        for _ in names:
            if path.read_bytes() == b"old":
                path.write_bytes(b"newer")
            yield Outcome()

    looks = iter(range(5))

    def find() -> list[str]:
        if next(looks, None) is None:
            raise KeyboardInterrupt
        return [str(path)]

    with pytest.raises(KeyboardInterrupt):
        watch.watch(find, lambda _: True, caption, lambda _: taken.append(path.read_bytes()), interval=0.001)
    assert taken == [b"newer"]


def test_sigterm_ends_it_well(tmp_path: Path) -> None:
    """The command as a service runs it."""
    with serving(FakeEngine()) as url:
        command = [sys.executable, "-m", "caption_client", "--watch", tmp_path, "--interval", "0.05", "--server", url]
        watching = subprocess.Popen(
            [*command, "--json", "-o", tmp_path / "out"], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "NO_PROXY": "*"},
        )  # fmt: skip
        (tmp_path / "a.png").write_bytes(PICTURE)
        while not ((tmp_path / "out").is_file() and (tmp_path / "out").read_bytes().endswith(b"\n")):
            assert watching.poll() is None
            time.sleep(0.01)
        watching.send_signal(signal.SIGTERM)
        _, err = watching.communicate()
    assert watching.returncode == cli.OK, err
    assert said(COLOURS[0]) in (tmp_path / "out").read_text()
