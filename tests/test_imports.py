"""Which way imports point: the plan of the house, held."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from labelmill import ROOT

FILES = {
    ".".join(("labelmill", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for room in ("operators", "pipelines")
    for path in sorted((ROOT / room).rglob("*.py"))
}
MENU = {"base", "registry", "errors", "ontology", "moment", "secrets", "wording"}
"""What lies among the operators and is none."""


def imported(path: Path) -> Iterator[str]:
    """Everything of ours, and ray, that a file imports: at its top, within functions, and for types alone."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            whole = f"{node.module}."
            yield from (whole + alias.name if whole + alias.name in FILES else whole[:-1] for alias in node.names)


IMPORTS = {module: set(imported(path)) for module, path in FILES.items()}


def room_of(module: str) -> str:
    """A module's folder below one of the two top folders, whose own modules stand for themselves."""
    is_room = FILES[module].name == "__init__.py"
    return module if module.count(".") < 3 and not is_room else ".".join(module.split(".")[:3])


def refuse_circles(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_circle_of_files() -> None:
    refuse_circles({module: names & FILES.keys() for module, names in IMPORTS.items()})


def test_no_circle_of_rooms() -> None:
    rooms = defaultdict[str, set[str]](set)
    for module, names in IMPORTS.items():
        rooms[room_of(module)] |= {room_of(name) for name in names & FILES.keys()} - {room_of(module)}
    refuse_circles(rooms)


def test_operators_know_neither_ray_nor_pipelines() -> None:
    forbidden = ("ray", "labelmill.pipelines")
    found = {
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in names
        if module.startswith("labelmill.operators") and any(f"{name}.".startswith(f"{top}.") for top in forbidden)
    }
    assert not found


def test_no_room_imports_an_operator() -> None:
    """But the miniatures, which are trained and measured with them."""
    operators = {
        module for module in FILES if module.startswith("labelmill.operators.") and room_of(module) == module
    } - {f"labelmill.operators.{name}" for name in MENU}
    operators -= {module for module in FILES if FILES[module].name == "__init__.py"}
    found = {
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in names & operators
        if module.startswith("labelmill.operators.")
        and room_of(module) != module
        and not module.startswith("labelmill.operators.miniatures.")
    }
    assert not found


def test_what_is_ours_is_imported_by_its_one_name() -> None:
    tests = {str(path): set(imported(path)) for path in (ROOT / "tests").rglob("*.py")}
    found = {
        f"{where} imports {name}"
        for where, names in {**IMPORTS, **tests}.items()
        for name in names
        if name.partition(".")[0] in ("operators", "pipelines")
    }
    assert not found
