"""Tests stand where the modules do: those of app/serving/batching.py in tests/app/serving/test_batching.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("app", "benchmarks", "caption_client", "model", "training")
# Names of errors alone, each expected where it is raised; the choice of the engine, in tests of both engines.
WITHOUT = {"model/errors.py", "training/data/errors.py", "model/runtime/__init__.py"}
# What measures, with libraries of the bench alone, and is run as a whole: scripts/bench --quick.
WITHOUT |= {f"benchmarks/{name}.py" for name in ("__main__", "contenders", "decode_costs", "servers")}
WITHOUT |= {f"benchmarks/sections/{name}.py"
            for name in ("clients", "costs", "engines", "large_jpeg", "parts", "servers", "start_up")}  # fmt: skip
MODULES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if "build" not in path.parts]


def does_something(module: Path) -> bool:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) for node in ast.parse(module.read_text()).body)


@pytest.mark.parametrize("module", [str(path.relative_to(ROOT)) for path in MODULES if does_something(path)])
def test_a_module_has_tests_of_its_name(module: str) -> None:
    folder, name = Path(module).parent, Path(module).stem
    name = folder.name if name == "__init__" else name  # app/compat/__init__.py has those in test_compat.py
    assert (ROOT / "tests" / folder / f"test_{name}.py").is_file() != (module in WITHOUT)
