"""The house in one picture: rooms, what stands in them, and which imports which; drawn in docs/architecture.md.

A room is a package. A package that holds other rooms is two: its own modules that import one of these stand above
them, the others beneath. Arrows that a longer way implies are left out; dotted are those that are followed only when
needed, inside a function.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("benchmarks", "training", "app", "caption_client", "model")

Arrows = Mapping[str, set[str]]


def modules() -> dict[str, ast.Module]:
    """All modules of the packages, parsed, by dotted name."""
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    found = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        if "build" not in parts:
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, known: Mapping[str, ast.Module]) -> Iterator[tuple[str, bool]]:
    """Of `known` the modules that one imports, and whether at once: not inside a function, nor for types alone."""

    def visit(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((name.name, at_once) for name in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                names = [f"{child.module}.{name.name}" for name in child.names]
                yield from ((name if name in known else child.module, at_once) for name in names)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            )
            yield from visit(child, at_once and not inside)

    return ((name, at_once) for name, at_once in visit(tree, True) if name in known)


def reached(start: str, arrows: Arrows) -> set[str]:
    """All that is reached from `start` in one step or more."""
    seen: set[str] = set()
    todo = set(arrows.get(start, ()))
    while todo:
        seen |= todo
        todo = set().union(*(arrows.get(name, set()) for name in todo)) - seen
    return seen


def rooms(known: Mapping[str, ast.Module], arrows: Arrows) -> dict[str, str]:
    """Module -> its room: a package, or `package:above` where the package's own module imports rooms in it."""
    packages = {name.rpartition(".")[0] for name in known} - {""}
    rooms = {}
    for name in known:
        package = name if name in packages else name.rpartition(".")[0]
        inner = {other for other in known if other.startswith(f"{package}.") and package_of(other, packages) != package}
        above = bool(reached(name, arrows) & inner) and name.count(".") < 2
        rooms[name] = f"{package}:above" if above and inner else package
    return rooms


def package_of(name: str, packages: set[str]) -> str:
    """The innermost package that a module stands in, or is."""
    return name if name in packages else name.rpartition(".")[0]


def mermaid() -> str:
    """The picture."""
    known = modules()
    at_once: dict[str, set[str]] = defaultdict(set)
    late: dict[str, set[str]] = defaultdict(set)
    for name, tree in known.items():
        for other, now in imports(tree, known):
            (at_once if now else late)[name].add(other)
    room = rooms(known, at_once)
    held: dict[str, list[str]] = defaultdict(list)
    for name, its in room.items():
        leaf = name.rpartition(".")[2]
        if its.partition(":")[0] != name:
            held[its].append(leaf)

    def between(arrows: Arrows) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for name, others in arrows.items():
            found[room[name]] |= {room[other] for other in others if room[other] != room[name]}
        return found

    solid = between(at_once)
    lines = ["flowchart TD"]
    for package in PACKAGES:
        lines.append(f"    subgraph {package}")
        for its in sorted(name for name in held if name.partition(":")[0].partition(".")[0] == package):
            title = f"{its.partition(':')[0].replace('.', '/')}/"
            lines.append(f'        {node(its)}["{title}<br>{wrapped(sorted(held[its]))}"]')
        lines.append("    end")
    for its, others in sorted(solid.items()):
        implied = set().union(*(reached(other, solid) for other in others))
        lines += [f"    {node(its)} --> {node(other)}" for other in sorted(others - implied)]
    for its, others in sorted(between(late).items()):
        lines += [f"    {node(its)} -.-> {node(other)}" for other in sorted(others - reached(its, solid))]
    return "```mermaid\n" + "\n".join(lines) + "\n```"


def node(room: str) -> str:
    """A room's name as Mermaid takes it."""
    return room.replace(".", "_").replace(":", "_")


def wrapped(names: list[str], width: int = 4) -> str:
    """Names with a line break after every few."""
    return "<br>".join(", ".join(names[i : i + width]) for i in range(0, len(names), width))


if __name__ == "__main__":
    print(mermaid())
