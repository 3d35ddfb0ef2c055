from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app import alt_text, cli
from app.client import CaptionClient, CaptionError
from app.schemas import CaptionParams, CaptionResponse
from model.errors import CheckpointError
from tests.app.fakes import POISON, FakeEngine, FakeRegions
from tests.app.pictures import plain
from tests.app.test_client import ANSWER

COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (120, 120, 20)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = FakeEngine()
    monkeypatch.setattr(cli, "load_engine", lambda *_: engine)
    return engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, one of them broken, at two levels, among other files."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "a.png").write_bytes(plain(COLOURS[0]))
    (folder / "b.JPG").write_bytes(plain(COLOURS[1], "JPEG"))
    (folder / "broken.png").write_bytes(plain(COLOURS[2])[:40])
    (folder / "deep" / "c.webp").write_bytes(plain(COLOURS[3], "WEBP"))
    for other in ("notes.txt", ".d.png", ".hidden/e.png"):
        (folder / other).write_bytes(b"no picture")
    return folder


def said(colour: tuple[int, int, int], rank: int = 0) -> str:
    """What the fake engine says of a picture of this colour."""
    engine = FakeEngine()
    regions = FakeRegions(np.array([colour]))
    search = CaptionParams(num_captions=rank + 1).search(engine.config.search)
    return engine.generate(regions, search)[0][rank].text


@pytest.mark.usefixtures("engine")
def test_one_picture_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(folder / "a.png")]) == cli.OK
    out, err = capsys.readouterr()
    assert out == said(COLOURS[0]) + "\n"
    assert err == ""


@pytest.mark.usefixtures("engine")
def test_folder_goes_deep_and_says_what_failed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(folder)]) == cli.FAILED
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{folder}/a.png: {said(COLOURS[0])}",
        f"{folder}/b.JPG: {said(COLOURS[1])}",
        f"{folder}/deep/c.webp: {said(COLOURS[3])}",
    ]
    assert err.splitlines()[0] == "caption: 1 of 4 pictures failed:"
    assert err.splitlines()[1].startswith(f"  {folder}/broken.png: ")
    assert "damaged" in err


def test_find(folder: Path) -> None:
    assert list(cli.find([f"{folder}/*.png", f"{folder}/**/*.webp", "-", "no/such.jpg", f"{folder}/none*"])) == [
        f"{folder}/a.png", f"{folder}/broken.png", f"{folder}/deep/c.webp", "-", "no/such.jpg",
    ]  # fmt: skip
    odd = folder / "[odd].png"
    odd.write_bytes(b"")
    assert list(cli.find([str(odd)])) == [str(odd)]  # a file's own name is no glob


@pytest.mark.usefixtures("engine")
def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for colour in COLOURS[:2]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(plain(colour))))
        assert cli.main(["-", "--explain", str(tmp_path / "why.html")]) == cli.OK
        assert capsys.readouterr().out == said(colour) + "\n"


@pytest.mark.usefixtures("engine")
def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(folder), "--json", "--num-captions", "2"]) == cli.FAILED
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b.JPG", "broken.png", "c.webp"]
    assert rows[0]["caption"] == said(COLOURS[0])
    assert [caption["text"] for caption in rows[0]["captions"]] == [said(COLOURS[0]), said(COLOURS[0], 1)]
    assert rows[0]["image"] == {"width": 24, "height": 16, "format": "PNG"}
    assert set(rows[2]) == {"path", "error"}


@pytest.mark.usefixtures("engine")
def test_csv(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / 'quoted, "name".png').write_bytes(plain(COLOURS[2]))
    assert cli.main([str(folder), "--csv"]) == cli.FAILED
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b.JPG", "broken.png", 'quoted, "name".png', "c.webp"]
    assert rows[3]["caption"] == said(COLOURS[2])
    assert [bool(row["error"]) for row in rows] == [False, False, True, False, False]


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_goes_on_after_a_stop(folder: Path, engine: FakeEngine, tmp_path: Path, kind: str) -> None:
    (folder / "broken.png").unlink()
    out = tmp_path / "out"
    arguments = [str(folder), f"--{kind}", "--output", str(out)]
    assert cli.main(arguments) == cli.OK
    whole = out.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 3, 0):
        out.write_bytes(whole[:cut])
        engine.batches.clear()
        assert cli.main([*arguments, "--skip-existing"]) == cli.OK
        assert out.read_bytes() == whole
        assert sum(engine.batches) == 3 - max(whole[:cut].count(b"\n") - (kind == "csv"), 0)
    engine.batches.clear()
    assert cli.main([*arguments, "--skip-existing"]) == cli.OK
    assert engine.batches == []


@pytest.mark.usefixtures("engine")
def test_another_programs_file_is_not_added_to(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.write_text("{'mine': 1}\n")
    assert cli.main([str(folder), "--json", "-o", str(out), "--skip-existing"]) == cli.USAGE
    assert "was not written by caption --json" in capsys.readouterr().err
    assert out.read_text() == "{'mine': 1}\n"


@pytest.mark.parametrize("place", ["sidecar", "xmp"])
def test_write_alt_only_when_asked(folder: Path, engine: FakeEngine, place: alt_text.Place) -> None:
    path = folder / "b.JPG"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert cli.main([str(path)]) == cli.OK
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert cli.main([str(path), "--write-alt", place]) == cli.OK
    assert alt_text.read(path, place) == said(COLOURS[1])
    engine.batches.clear()
    alt_text.write(path, "by hand", place)
    assert cli.main([str(path), "--write-alt", place, "--skip-existing"]) == cli.OK
    assert alt_text.read(path, place) == "by hand"
    assert engine.batches == []


@pytest.mark.usefixtures("engine")
def test_write_alt_that_cannot_be_written_is_a_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(folder / "a.png"), "--write-alt", "xmp"]) == cli.FAILED
    assert "only a JPEG" in capsys.readouterr().err


def test_one_bad_picture_does_not_fail_its_batch(
    folder: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a0.png").write_bytes(plain(POISON))
    assert cli.main([str(folder), "--csv"]) == cli.FAILED
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["caption"] for row in rows] == [said(COLOURS[0]), "", said(COLOURS[1]), "", said(COLOURS[3])]
    assert rows[1]["error"] == "the model failed on this picture"


def test_many_pictures_are_read_only_a_little_ahead(engine: FakeEngine, tmp_path: Path) -> None:
    """Constant memory: however many pictures there are, few are open, and the engine gets whole batches."""
    path = tmp_path / "a.png"
    path.write_bytes(plain(COLOURS[0]))
    taken = 0

    def names() -> Iterator[str]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield str(path)

    outcomes = cli.in_process(names(), engine, CaptionParams(), 10**6)
    for done, _ in enumerate(itertools.islice(outcomes, 500), 1):
        assert taken - done < 4 * cli.BATCH
    outcomes.close()  # type: ignore[attr-defined]
    assert set(engine.batches) == {cli.BATCH}
    assert taken < 600


def test_explain_writes_a_page(engine: FakeEngine, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "why.html"
    assert cli.main([str(folder), "--explain", str(out)]) == cli.FAILED
    html = out.read_text()
    assert html.count('class="explained"') == 3
    assert said(COLOURS[3]) in html
    assert '"attention"' in html
    assert "http://" not in html.replace("http://www.w3.org/", "")


def test_options_reach_the_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[object] = []

    class Engine(FakeEngine):
        def caption(self, pixels: NDArray[np.uint8], search: object = None, explain: bool = False):  # type: ignore[no-untyped-def]
            seen.append(search)
            return super().caption(pixels, search, explain)  # type: ignore[arg-type]

    monkeypatch.setattr(cli, "load_engine", lambda *given: seen.append(given) or Engine())
    options = ["--strategy", "sample", "--temperature", "0.7", "--top-p", "0.9", "--seed", "3", "--max-length", "9"]
    assert cli.main([str(folder / "a.png"), *options, "--threads", "2", "--device", "cpu", "--model", "m"]) == cli.OK
    loaded, search = seen
    assert loaded == (Path("m"), "cpu", "auto", 2)
    assert (search.strategy, search.temperature, search.top_p, search.seed, search.max_length) == (  # type: ignore[attr-defined]
        "sample", 0.7, 0.9, 3, 9,
    )  # fmt: skip


class FakeServer(CaptionClient):
    """A client that answers by itself."""

    asked: list[dict[str, object]]

    def model(self) -> dict[str, object]:
        return {}

    def caption(self, picture: object, **params: object) -> CaptionResponse:
        assert isinstance(picture, bytes)
        self.asked.append(params)
        if len(picture) == 40:
            raise CaptionError("cut off", 422, "broken_image")
        return CaptionResponse.model_validate(ANSWER)


def test_server(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    FakeServer.asked = []
    monkeypatch.setattr(cli, "CaptionClient", FakeServer)
    monkeypatch.setattr(cli, "load_engine", lambda *_: pytest.fail("no model is needed"))
    assert cli.main([str(folder), "--server", "http://there", "-n", "1"]) == cli.FAILED
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{folder}/{name}: Red." for name in ("a.png", "b.JPG", "deep/c.webp")]
    assert f"{folder}/broken.png: cut off" in err
    assert FakeServer.asked == [{"num_captions": 1}] * 4  # what was not given is the server's to choose


def test_what_cannot_start_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object) -> FakeEngine:
        raise CheckpointError("no checkpoint in m")

    monkeypatch.setattr(cli, "load_engine", broken)
    assert cli.main([str(folder)]) == cli.USAGE
    assert capsys.readouterr().err == "caption: no checkpoint in m\n"
    (tmp_path / "empty").mkdir()
    assert cli.main([str(tmp_path / "empty")]) == cli.USAGE
    assert "no pictures found" in capsys.readouterr().err
    monkeypatch.setattr(
        cli.CaptionClient, "_send", lambda *_: (_ for _ in ()).throw(CaptionError("no answer: refused"))
    )
    assert cli.main([str(folder), "--server", "http://127.0.0.1:9"]) == cli.USAGE
    assert capsys.readouterr().err == "caption: no answer: refused\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.png", "--skip-existing"], ["a.png", "--output", "x"], ["a.png", "--json", "--csv"], ["a.png", "-n", "6"],
        ["a.png", "--temperature", "0"], ["-", "--write-alt", "sidecar"], [],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == cli.USAGE
    assert "usage: caption" in capsys.readouterr().err


@pytest.mark.usefixtures("engine")
def test_missing_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main([str(tmp_path / "none.jpg")]) == cli.FAILED
    assert f"{tmp_path}/none.jpg: No such file or directory" in capsys.readouterr().err


def test_interruption_says_how_to_go_on(
    folder: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "caption", interrupt)
    assert cli.main([str(folder)]) == cli.INTERRUPTED
    assert "--skip-existing goes on from here" in capsys.readouterr().err


def test_serve_is_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    from app import __main__

    given: list[object] = []
    monkeypatch.setattr(__main__, "main", lambda arguments: given.append(arguments) or 0)
    assert cli.main(["serve", "--port", "0"]) == 0
    assert given == [["--port", "0"]]


@pytest.mark.usefixtures("engine")
def test_names_need_not_be_utf8(folder: Path, tmp_path: Path) -> None:
    name = str(folder).encode() + b"/\xff.png"
    with open(name, "wb") as file:
        file.write(plain(COLOURS[0]))
    out = tmp_path / "out.jsonl"
    for _ in range(2):
        assert cli.main([name.decode(errors="surrogateescape"), "--json", "-o", str(out), "--skip-existing"]) == cli.OK
    assert len(out.read_bytes().splitlines()) == 1


def test_an_oriented_picture_keeps_its_size_in_the_answer(engine: FakeEngine, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    [outcome] = cli.in_process([str(path)], engine, CaptionParams(), 10**6)
    assert outcome.image is not None
    assert (outcome.image.width, outcome.image.height) == (20, 30)
