"""What the guides in docs/ show is true: commands and programs run, quoted lines stand in the source."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import ServiceError
from app.schemas import CaptionResponse
from app.settings import Settings
from tests.page.engine import FakeEngine
from tests.page.live import serving

ROOT = Path(__file__).parent.parent
NAMES = ("quick-start", "command-line", "api", "clients", "deployment", "how-it-works", "how-it-works.zh",
         "troubleshooting")  # fmt: skip
GUIDES = [ROOT / "docs" / f"{name}.md" for name in NAMES]
LOCALHOST = "http://localhost:8000"
NOT_RUN = "# not run here: "
CAPTION = f'caption() {{ "{sys.executable}" -m caption_client "$@"; }}\n'  # what `pip install .` installs


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code of one language in a Markdown file."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.M | re.S)


def examples(language: str) -> list[object]:
    """Those blocks of every guide that are programs to run."""
    return [
        pytest.param(block, id=f"{path.stem}-{n}")
        for path in GUIDES
        for n, block in enumerate(blocks(path, language))
        if not block.startswith((NOT_RUN, "# model/"))
    ]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeEngine()) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place to run in, with the files the examples name; what they write stays there."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "static").mkdir()
    shutil.copy(ROOT / "app" / "static" / "sample.jpg", tmp_path / "app" / "static")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def run(command: list[str], program: str, url: str, folder: Path) -> str:
    """What `program` prints, with the service at `url` in place of the documented one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    done = subprocess.run(
        command, input=program.replace(LOCALHOST, url), cwd=folder, env=environment, text=True, capture_output=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("block", examples("sh"))
def test_commands_run(block: str, url: str, folder: Path) -> None:
    assert (
        run(["bash", "-euo", "pipefail", "/dev/stdin"], CAPTION + block, url, folder)
        or "--output" in block
        or ("--write-alt" in block)
    )


@pytest.mark.parametrize("block", examples("python"))
def test_python_runs(block: str, url: str, folder: Path) -> None:
    assert run([sys.executable, "-W", "error", "-"], block, url, folder)


@pytest.mark.parametrize("block", examples("javascript"))
def test_javascript_runs(block: str, url: str, folder: Path) -> None:
    node = shutil.which("node")
    if node is None and os.environ.get("CI") != "true":
        pytest.skip("no Node.js here")
    assert node, "CI must have Node.js"
    assert run([node, "--input-type=module", "-"], block, url, folder)


def test_the_answer_shown_is_one_the_service_could_give() -> None:
    [block] = blocks(ROOT / "docs" / "api.md", "json")
    shown = json.loads(block)
    answer = CaptionResponse.model_validate(shown)
    assert answer.model_dump(exclude_none=True).keys() == shown.keys()


def test_every_error_code_is_in_the_table() -> None:
    def all_of(error: type[ServiceError]) -> Iterator[str]:
        yield error.code
        for sub in error.__subclasses__():
            yield from all_of(sub)

    listed = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "api.md").read_text().partition("## Errors")[2]))
    assert set(all_of(ServiceError)) - listed == {"client_gone"}  # which nobody is left to read


@pytest.mark.parametrize("name", ["how-it-works", "how-it-works.zh"])
def test_quoted_lines_stand_in_the_source(name: str) -> None:
    quoted = [block for block in blocks(ROOT / "docs" / f"{name}.md", "python") if block.startswith("# ")]
    assert len(quoted) > 10
    for block in quoted:
        name, *lines = block.splitlines()
        source = [line.strip() for line in (ROOT / name.removeprefix("# ")).read_text().splitlines()]
        assert [line for line in lines if line.strip() not in source] == [], name


def test_both_editions_quote_the_same_lines() -> None:
    english, chinese = (blocks(ROOT / "docs" / f"{name}.md", "python") for name in ("how-it-works", "how-it-works.zh"))
    assert english == chinese


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_links_and_settings_exist(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    settings = {f"CAPTION_{name.upper()}" for name in Settings.model_fields}
    compose = set(re.findall(r"CAPTION_\w+", (ROOT / "docker-compose.yml").read_text()))
    named = set(re.findall(r"CAPTION_[A-Z_]+[A-Z]", text)) - {"CAPTION_API_KEY"}  # the client's own
    assert named - settings - compose == set()
