from __future__ import annotations

from pathlib import Path

import pytest

import caption_client
from caption_client import cli


def test_a_bad_variable_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAPTION_MAX_PIXELS", "many")
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(tmp_path)])
    assert stopped.value.code == cli.USAGE
    assert "--max-pixels: invalid" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == cli.OK
    assert capsys.readouterr().out == f"caption {caption_client.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.png", "--skip-existing"], ["a.png", "--output", "x"], ["a.png", "--json", "--csv"], ["a.png", "-n", "6"],
        ["a.png", "--temperature", "0"], ["-", "--write-alt", "sidecar"], [], ["--watch", "/"],
        ["--watch", "/no/such", "--write-alt", "txt"], ["a.png", "--watch", "/", "--write-alt", "txt"],
        ["a.png", "--parquet"], ["a.png", "--prefix", "x"], ["a.png", "--write-alt", "xmp", "--metadata", "xmp,mp3"],
        ["a.png", "--write-alt", "xmp", "--prefix", "x"], ["a.png", "--min-tag", "2"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == cli.USAGE
    assert "usage: caption" in capsys.readouterr().err
