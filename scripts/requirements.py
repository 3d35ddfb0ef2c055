"""Prints what a group of pyproject.toml needs, one requirement a line, groups it names included: no group is the base.

scripts/requirements.py [GROUP]. It needs nothing but Python, and pyproject.toml beside it or above.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], group: str | None) -> Iterator[str]:
    """The base's requirements and those of `group`."""
    for line in [*project["dependencies"], *(project["optional-dependencies"][group] if group else ())]:
        ours = re.fullmatch(rf"{re.escape(project['name'])}\[(.*)\]", line)
        if ours is None:
            yield line
            continue
        for name in ours[1].split(","):
            yield from requirements(project, name.strip())


def main() -> None:
    """The command line."""
    here = Path(__file__).resolve().parent
    [file] = [path for path in (here / "pyproject.toml", here.parent / "pyproject.toml") if path.is_file()]
    project = tomllib.loads(file.read_text())["project"]
    print(*sorted(set(requirements(project, sys.argv[1] if len(sys.argv) > 1 else None))), sep="\n")


if __name__ == "__main__":
    main()
