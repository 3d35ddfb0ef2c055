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
