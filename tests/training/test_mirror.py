"""Tests mirror modules one to one: what a module does is tested in the file of its name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT = {
    "model/errors.py": "names of errors alone; each is expected where it is raised",
    "training/data/errors.py": "likewise",
}


def does_something(module: Path) -> bool:
    content = ast.parse(module.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in content)


@pytest.mark.parametrize("room", ["model", "training"])
def test_every_module_has_its_tests(room: str) -> None:
    modules = {file.relative_to(ROOT) for file in (ROOT / room).rglob("*.py") if file.name != "__init__.py"}
    tested = {test.relative_to(ROOT / "tests").with_name(test.name.removeprefix("test_"))
              for test in (ROOT / "tests" / room).rglob("test_*.py")}  # fmt: skip
    wanted = {module for module in modules if does_something(ROOT / module) and str(module) not in WITHOUT}
    assert wanted - tested == set()
    assert {Path(name) for name in WITHOUT if name.startswith(room)} <= modules - tested
