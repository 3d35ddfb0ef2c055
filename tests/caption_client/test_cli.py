from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from app import local
from app.schemas import CaptionParams
from caption_client import answers, cli, client, dataset, files
from caption_client.alt_text import AltText, Place, sidecar
from caption_client.answers import Answer, Result
from caption_client.client import CaptionClient, CaptionError
from model.config import SearchConfig
from model.constraints import FREE, Constraints
from model.errors import CheckpointError, ConfigError
from model.runtime.engine import Regions
from tests.app.fakes import POISON, FakeEngine, FakeRegions
from tests.caption_client.test_client import ANSWER
from tests.page.live import serving
from tests.pictures import plain

COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (120, 120, 20)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = FakeEngine()
    monkeypatch.setattr(local, "load_engine", lambda *_: engine)
    monkeypatch.setattr(local, "is_decorative", lambda *_: False)  # which pictures of one colour are
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
    search_config = CaptionParams(num_captions=rank + 1).search_config(engine.config.search)
    return engine.generate(regions, search_config)[0][rank].text


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
    assert list(files.find([f"{folder}/*.png", f"{folder}/**/*.webp", "-", "no/such.jpg", f"{folder}/none*"])) == [
        f"{folder}/a.png", f"{folder}/broken.png", f"{folder}/deep/c.webp", "-", "no/such.jpg",
    ]  # fmt: skip
    odd = folder / "[odd].png"
    odd.write_bytes(b"")
    assert list(files.find([str(odd)])) == [str(odd)]  # a file's own name is no glob


@pytest.mark.usefixtures("engine")
def test_a_folder_that_is_not_looked_into_is_a_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "link").symlink_to(folder / "deep")
    (folder / "broken.png").unlink()
    assert cli.main([str(folder)]) == cli.FAILED
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert f"{folder}/link: a link to a folder" in err


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
        assert out.read_bytes() == (whole if engine.batches else whole[:cut])  # nothing to do is nothing to write
        records = whole[:cut].count(b"\n") + (cut == len(whole) - 1)  # which lacks its line break alone
        assert sum(engine.batches) == 3 - max(records - (kind == "csv"), 0)
    engine.batches.clear()
    assert cli.main([*arguments, "--skip-existing"]) == cli.OK
    assert engine.batches == []


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("more", [["--json", "-o"], ["--csv", "-o"], ["--csv", "--skip-existing", "-o"], ["--explain"]])
def test_another_programs_file_is_not_changed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    (folder / "broken.png").unlink()
    out = tmp_path / "out"
    out.write_text("my notes, without an end")
    assert cli.main([str(folder), *more, str(out)]) == cli.USAGE
    assert "was not written by caption --" in capsys.readouterr().err
    assert out.read_text() == "my notes, without an end"
    assert cli.main([str(folder), *more, str(out), "--force"]) == cli.OK
    assert cli.main([str(folder), *more, str(out)]) == cli.OK  # it is ours now
    assert "my notes" not in out.read_text()
    assert sorted(os.listdir(tmp_path)) == ["out", "pictures"]


@pytest.mark.usefixtures("engine")
def test_a_run_that_cannot_start_leaves_the_old_results(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (folder / "broken.png").unlink()
    assert cli.main([str(folder), "--csv", "-o", str(out)]) == cli.OK
    before = out.read_bytes()

    def broken(*_: object) -> FakeEngine:
        raise CheckpointError("no checkpoint")

    monkeypatch.setattr(local, "load_engine", broken)
    assert cli.main([str(folder), "--csv", "-o", str(out)]) == cli.USAGE
    assert out.read_bytes() == before


@pytest.mark.usefixtures("engine")
def test_no_cell_of_csv_is_a_formula(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("=cmd.png").write_bytes(plain(COLOURS[0]))
    out = tmp_path / "out.csv"
    assert cli.main(["=cmd.png", "a.png", "--csv", "-o", str(out)]) == cli.OK
    rows = list(csv.reader(out.read_text().splitlines()))
    assert [row[0] for row in rows] == ["path", "'=cmd.png", "a.png"]
    before = out.read_bytes()
    assert cli.main(["=cmd.png", "a.png", "--csv", "-o", str(out), "--skip-existing"]) == cli.OK
    assert out.read_bytes() == before  # the name is known again


@pytest.mark.parametrize("place", ["sidecar", "txt", "xmp"])
def test_write_alt_only_when_asked(
    folder: Path, engine: FakeEngine, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "b.JPG"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert cli.main([str(path)]) == cli.OK
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with AltText(place) as texts:
        assert cli.main([str(path), "--write-alt", place]) == cli.OK
        assert texts.read(path) == said(COLOURS[1])
        if place == "xmp":
            subprocess.run(["exiftool", "-q", "-overwrite_original", "-XMP-dc:Description=by hand", path], check=True)
            subprocess.run(
                ["exiftool", "-q", "-overwrite_original", "-XMP-iptcCore:AltTextAccessibility=by hand",
                 "-XMP-photoshop:CaptionWriter=", path], check=True,
            )  # fmt: skip
        else:
            sidecar(path, place).write_text("by hand")
        engine.batches.clear()
        assert cli.main([str(path), "--write-alt", place, "--skip-existing"]) == cli.OK
        assert engine.batches == []
        capsys.readouterr()
        assert cli.main([str(path), "--write-alt", place]) == cli.OK
        assert "1 of 1 pictures kept another text; --force replaces it" in capsys.readouterr().err
        assert texts.read(path) == "by hand"
        assert cli.main([str(path), "--write-alt", place, "--force"]) == cli.OK
        assert texts.read(path) == said(COLOURS[1])


@pytest.mark.usefixtures("engine")
def test_write_alt_that_cannot_be_written_is_a_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.jpg").write_bytes(plain(COLOURS[1], "JPEG"))
    assert cli.main([str(folder / "a.png"), "--write-alt", "txt"]) == cli.FAILED
    assert "a.jpg would have the same text file" in capsys.readouterr().err


class Tagger(FakeEngine):
    """It also knows how likely each picture is red, and green."""

    def __init__(self) -> None:
        super().__init__()
        self.config = replace(self.config, tags=("red", "green", "blue"), review_below=0.99)

    def tags(self, regions: Regions) -> NDArray[np.float32]:
        assert isinstance(regions, FakeRegions)
        return (regions.colours / 255).astype(np.float32)


@pytest.fixture
def tagger(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "load_engine", lambda *_: Tagger())


@pytest.mark.usefixtures("tagger")
def test_texts_to_train_on(folder: Path) -> None:
    path = folder / "a.png"  # red
    assert cli.main([str(path), "--write-alt", "txt", "--prefix", "photo: ", "--suffix", ", 4k", "--tags"]) == cli.OK
    assert (folder / "a.txt").read_text() == f"photo: {said(COLOURS[0])}, 4k, red\n"
    assert cli.main([str(path), "--write-alt", "sidecar", "--tags", "--min-tag", "0.05"]) == cli.OK
    assert (folder / "a.png.txt").read_text() == f"{said(COLOURS[0])[:-1]}, red, green, blue\n"
    assert cli.main([str(path), "--write-alt", "xmp", "--tags", "--metadata", "xmp,exif"]) == cli.OK
    done = subprocess.run(
        ["exiftool", "-s3", "-XMP-dc:Subject", "-XMP-dc:Description", "-IFD0:ImageDescription", path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["red", said(COLOURS[0]), said(COLOURS[0])]


@pytest.mark.usefixtures("engine")
def test_a_model_without_tags_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(folder / "a.png"), "--write-alt", "txt", "--tags"]) == cli.OK
    assert "1 of 1 pictures got no tags: the model has none" in capsys.readouterr().err
    assert (folder / "a.txt").read_text() == said(COLOURS[0]) + "\n"


@pytest.mark.usefixtures("tagger")
def test_json_has_what_the_service_says_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(folder / "a.png"), "--json"]) == cli.OK
    row = json.loads(capsys.readouterr().out)
    assert row["alt"] == said(COLOURS[0])
    assert row["review"] is True
    assert [tag["text"] for tag in row["tags"]] == ["red", "green", "blue"]


def test_a_picture_that_shows_nothing_gets_no_alternative_text(
    folder: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "is_decorative", lambda *_: True)
    assert cli.main([str(folder / "a.png"), "--write-alt", "sidecar"]) == cli.OK
    assert "1 of 1 pictures skipped: they show nothing" in capsys.readouterr().err
    assert not (folder / "a.png.txt").exists()
    assert cli.main([str(folder / "a.png"), "--write-alt", "txt"]) == cli.OK  # to train on, it is a caption
    assert (folder / "a.txt").read_text() == said(COLOURS[0]) + "\n"


def state(folder: Path) -> dict[Path, object]:
    """All there is below a folder: bytes, and times of the last change."""
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in (folder, *folder.rglob("*"))
    }


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    "where", [["--write-alt", "xmp"], ["--write-alt", "txt"], ["--json", "-o", "out"], ["--parquet", "-o", "out"]]
)
def test_a_dry_run_changes_no_byte_and_no_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: list[str]
) -> None:
    monkeypatch.chdir(folder)
    for old in ("out", "a.txt"):
        Path(old).write_text("")
    before = state(folder)
    for more in ([], ["--skip-existing"], ["--force"]):
        assert cli.main([".", *where, "--dry-run", *more]) == cli.FAILED  # one is broken
        out, err = capsys.readouterr()
        assert state(folder) == before
        assert said(COLOURS[1]) in out
        assert "would be captioned" in err
        if "xmp" in where:
            assert "caption: would write b.JPG\n" in err
            assert "caption: would write deep/c.webp\n" in err


@pytest.mark.usefixtures("tagger")
def test_the_summary_says_what_was_skipped_and_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "film.mov").touch()
    (folder / "c.bmp").write_bytes(plain(COLOURS[2], "BMP"))
    assert cli.main([str(folder / "a.png"), "--write-alt", "xmp"]) == cli.OK
    path = folder / "b.JPG"
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-XMP-dc:Description=by hand", path], check=True)
    capsys.readouterr()
    assert cli.main([str(folder), "--write-alt", "xmp"]) == cli.FAILED
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "caption: left out, no pictures by their names: 1 .mov"
    told = dict(itertools.pairwise(line.removeprefix("caption: ").strip() for line in lines))
    assert told["1 of 5 pictures kept another text; --force replaces it:"] == str(path)
    assert told["1 of 5 pictures do not carry it themselves, it is in an XMP file beside:"] == (
        f"{folder}/c.bmp: its format carries no text"
    )
    assert told["4 of 5 pictures should be looked at: the model is not sure of them:"] == str(folder / "a.png")
    assert "damaged" in told["1 of 5 pictures failed:"]
    assert lines[-1] == "caption: 5 pictures: 4 captioned, 0 skipped, 1 failed"
    assert cli.main([str(folder), "--write-alt", "xmp", "--skip-existing"]) == cli.FAILED
    lines = capsys.readouterr().err.splitlines()
    assert "caption: 4 of 5 pictures skipped: they have a caption already (--skip-existing):" in lines
    assert lines[-1] == "caption: 5 pictures: 0 captioned, 4 skipped, 1 failed"


def test_one_bad_picture_does_not_fail_its_batch(
    folder: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a0.png").write_bytes(plain(POISON))
    assert cli.main([str(folder), "--csv"]) == cli.FAILED
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["caption"] for row in rows] == [said(COLOURS[0]), "", said(COLOURS[1]), "", said(COLOURS[3])]
    assert rows[1]["error"] == "the model failed on this picture"


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
        def generate(self, regions: FakeRegions, search_config: object = None, explain: bool = False):  # type: ignore[no-untyped-def, override]
            seen.append(search_config)
            return super().generate(regions, search_config, explain)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "load_engine", lambda *given: seen.append(given) or Engine())
    options = ["--strategy", "sample", "--temperature", "0.7", "--top-p", "0.9", "--seed", "3", "--max-length", "9"]
    assert cli.main([str(folder / "a.png"), *options, "--threads", "2", "--device", "cpu", "--model", "m"]) == cli.OK
    loaded, search_config = seen
    assert loaded == (Path("m"), "cpu", "auto", 2)
    asked = (getattr(search_config, name) for name in ("strategy", "temperature", "top_p", "seed", "max_length"))
    assert tuple(asked) == ("sample", 0.7, 0.9, 3, 9)


def test_words_are_asked_for_and_forbidden(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[SearchConfig] = []

    class Engine(FakeEngine):
        def constraints(self, search_config: SearchConfig) -> Constraints:
            if "unicorn" in search_config.avoid:
                raise ConfigError("avoid: the model does not know the word 'unicorn'")
            return FREE

        def generate(self, regions: FakeRegions, search: Any = None, explain: bool = False):  # type: ignore[no-untyped-def, override]
            seen.append(search)
            found = super().generate(regions, search, explain)
            return [[replace(one, text=f"A man {one.text}") for one in captions] for captions in found]

    monkeypatch.setattr(local, "load_engine", lambda *_: Engine())
    words = ["--avoid", "dog,hot dog", "--start-with", "a photo of", "--min-length", "4"]
    assert cli.main([str(folder / "a.png"), *words, "--wording", "gender-neutral"]) == cli.OK
    [search] = seen
    assert (search.avoid, search.start_with, search.min_length) == (("dog", "hot dog"), "a photo of", 4)
    assert capsys.readouterr().out.startswith("A person ")
    assert cli.main([str(folder / "a.png"), "--avoid", "unicorn"]) == cli.USAGE
    assert capsys.readouterr().err == "caption: avoid: the model does not know the word 'unicorn'\n"
    assert cli.main([str(folder / "a.png"), "--min-length", "9", "--max-length", "3"]) == cli.USAGE
    assert capsys.readouterr().err.startswith("caption: min_length")


class FakeServer(CaptionClient):
    """A client that answers by itself."""

    asked: list[tuple[int, dict[str, object]]]
    fails: CaptionError | None = None

    def model(self) -> dict[str, object]:
        return {"limits": {"max_images": 2}}

    def captions(self, pictures: Iterable[object], **params: object) -> list[Result]:
        pictures = list(pictures)
        self.asked.append((len(pictures), params))
        if self.fails and len(self.asked) > 1:
            raise self.fails
        problem = answers.Problem("about:blank", "", 422, "cut off", "broken_image", "r")
        good = answers.read(Answer, ANSWER)
        return [Result("", error=problem) if len(p) == 40 else Result("", good) for p in pictures]  # type: ignore[arg-type]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    FakeServer.asked, FakeServer.fails = [], None
    monkeypatch.setattr(cli, "CaptionClient", FakeServer)
    monkeypatch.setattr(cli, "REQUESTS", 1)  # in a known order
    monkeypatch.setattr(local, "load_engine", lambda *_: pytest.fail("no model is needed"))
    return FakeServer


def test_server(folder: Path, server: type[FakeServer], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(folder), f"{folder}/gone.png", "--server", "http://there", "-n", "1"]) == cli.FAILED
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{folder}/{name}: Red." for name in ("a.png", "b.JPG", "deep/c.webp")]
    assert f"{folder}/broken.png: cut off" in err
    assert f"{folder}/gone.png: No such file or directory" in err
    # In requests of at most what the server takes; what was not given is the server's to choose.
    assert server.asked == [(2, {"num_captions": 1}), (2, {"num_captions": 1}), (0, {"num_captions": 1})]


def test_many_pictures_are_split_and_few_requests_are_in_flight(folder: Path) -> None:
    lock, inside, most = threading.Lock(), 0, 0
    together = threading.Barrier(cli.REQUESTS)

    class Counting(FakeServer):
        def captions(self, pictures: Iterable[object], **params: object) -> list[Result]:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            together.wait(60)  # as many as may be are here at once
            with lock:
                inside -= 1
            return super().captions(pictures, **params)

    FakeServer.asked, FakeServer.fails = [], None
    names = [str(folder / "a.png")] * (16 * cli.REQUESTS * 3)
    outcomes = list(cli.at_server(iter(names), Counting(), {}, 16))
    assert [outcome.name for outcome in outcomes] == names
    assert [size for size, _ in FakeServer.asked] == [16] * (3 * cli.REQUESTS)
    assert most == cli.REQUESTS


# The command, which is killed while it writes its 20th row.
DYING = """
import os, signal
from caption_client import cli

def write(self, outcome, row, written=[], right=cli._Writer.write):
    written.append(outcome)
    if len(written) == 20:
        print('{"', end="", file=self.file, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    right(self, outcome, row)

cli._Writer.write = write
cli.main()
"""


@pytest.mark.parametrize("kind", ["json", "imagefolder", "parquet"])
def test_a_killed_run_goes_on_and_writes_nothing_twice(tmp_path: Path, kind: str) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(40):
        (pictures / f"{n:02}.png").write_bytes(plain((200, 20, n)))
    out = pictures / "out"
    environment = {**os.environ, "NO_PROXY": "*"}
    with serving(FakeEngine()) as url:
        options = ["--server", url, str(pictures), f"--{kind}", "-o", str(out), "--skip-existing"]
        killed = subprocess.run([sys.executable, "-c", DYING, *options], env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert (dataset.journal(out) if kind == "parquet" else out).read_bytes().count(b"\n") == 19
        done = subprocess.run([sys.executable, "-m", "caption_client", *options], env=environment, check=False)
    assert done.returncode == cli.OK
    if kind == "parquet":
        names = pyarrow.parquet.read_table(out).column("file_name").to_pylist()
    else:
        names = [
            Path(row.get("path") or row["file_name"]).name for row in map(json.loads, out.read_text().splitlines())
        ]
    assert names == [f"{n:02}.png" for n in range(40)]
    assert sorted(os.listdir(pictures)) == [*names, "out"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (CaptionError("no answer: refused"), "stopped: no answer: refused"),
        (CaptionError("wrong key", 401, "unauthorized"), "stopped: wrong key"),
        (CaptionError("late", 504, "deadline_exceeded"), "c.webp: late"),
    ],
    ids=["gone", "key", "late"],
)
def test_what_would_fail_every_picture_stops_the_run(
    folder: Path, server: type[FakeServer], capsys: pytest.CaptureFixture[str], error: CaptionError, says: str
) -> None:
    server.fails = error
    assert cli.main([str(folder), "--server", "http://there"]) == cli.FAILED
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert says in err


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9", "no answer"),
        ("localhost:9", "no address of a service"),
        ("http://[::1", "no address"),
    ],
)  # fmt: skip
def test_a_wrong_server_is_one_line_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, says: str
) -> None:
    monkeypatch.setattr(client.time, "sleep", lambda seconds: pytest.fail("waited"))
    monkeypatch.setenv("NO_PROXY", "*")
    assert cli.main([str(folder), "--server", url]) == cli.USAGE
    [line] = capsys.readouterr().err.splitlines()
    assert says in line


def test_an_interruption_at_the_start_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "load_engine", interrupt)
    assert cli.main([str(folder)]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "caption: interrupted\n"


def test_what_cannot_start_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object) -> FakeEngine:
        raise CheckpointError("no checkpoint in m")

    monkeypatch.setattr(local, "load_engine", broken)
    assert cli.main([str(folder)]) == cli.USAGE
    assert capsys.readouterr().err == "caption: no checkpoint in m\n"
    (tmp_path / "empty").mkdir()
    assert cli.main([str(tmp_path / "empty")]) == cli.USAGE
    assert "no pictures found" in capsys.readouterr().err


@pytest.mark.usefixtures("engine")
def test_missing_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main([str(tmp_path / "none.jpg")]) == cli.FAILED
    assert f"{tmp_path}/none.jpg: No such file or directory" in capsys.readouterr().err


def test_interruption_says_how_to_go_on(
    folder: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "generate", interrupt)
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
