"""Documents made from the code are current, and what README says to type is there to be typed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.page.engine import FakeEngine
from tests.page.live import serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_generated_documents_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_document_is_noticed(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import docs
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    text = "a\n<!-- speed -->\nold\n<!-- end -->\nb\n<!-- quality -->\n<!-- end -->\n"
    assert docs.filled(text, {"speed": "new"}) == text.replace("old", "new")
    with pytest.raises(AssertionError, match="no block named settings"):
        docs.filled(text, {"settings": ""})


def test_local_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_what_a_guide_to_the_code_names_is_there(name: str) -> None:
    file = ROOT / name
    text = file.read_text()
    links = re.findall(r"\[(?:`(\w+)`|[^\]]+)\]\((?!https?:)([^)#]+)[^)]*\)", text)
    assert len(links) > 3
    for thing, link in links:
        target = file.parent / link
        assert target.exists(), link
        if thing and target.is_file():
            assert re.search(rf"^\s*((async def|def|class) {thing}\b|{thing} =)", target.read_text(), re.M), (
                thing,
                link,
            )
    paths = re.findall(r"`((?:app|benchmarks|caption_client|docs|model|scripts|tests|training)/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_picture_of_the_imports_shows_a_new_room_and_its_arrows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import imports

    for path, text in {
        "app/__init__.py": "", "app/main.py": "from app.rooms import door\n", "app/rooms/__init__.py": "",
        "app/rooms/door.py": "from app import errors\n\ndef late():\n    import model.search\n", "app/errors.py": "",
        "model/__init__.py": "", "model/search.py": "",
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(imports, "ROOT", tmp_path)
    lines = [line.strip() for line in imports.mermaid().splitlines()]
    assert [line for line in lines if "-->" in line or "-.->" in line] == [
        "app_rooms --> app", "app_above --> app_rooms", "app_rooms -.-> model",
    ]  # fmt: skip
    assert 'app_rooms["app/rooms/<br>door"]' in lines


def test_shell_commands_name_files_that_exist() -> None:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
    words = [word for line in lines for word in shlex.split(line, comments=True)]
    assert {word for word in words if word.startswith("scripts/")} == {
        "scripts/serve", "scripts/test", "scripts/train",
    }  # fmt: skip
    for word in words:
        path = word.removeprefix("image=@")
        if path.startswith(("scripts/", "app/")):
            assert (ROOT / path).is_file(), path


def test_readme_examples_run() -> None:
    (python,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    curls = re.findall(r"^curl .*$", README, re.MULTILINE)
    assert curls
    with serving(FakeEngine()) as url:
        for command in ([sys.executable, "-c", python], *(["bash", "-c", f"{curl} --fail --silent"] for curl in curls)):
            here = [word.replace("http://localhost:8000", url) for word in command]
            environment = {**os.environ, "NO_PROXY": "*"}
            done = subprocess.run(here, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()
