"""How the files lie: folders that can be looked over, and imports that only go down."""

from __future__ import annotations

import ast
import graphlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

MOST_FILES = 10
FRONT_DOORS = {"__init__", "__main__"}
"""Files of `sidecar/` that import whatever they open."""


def name_of(file: Path) -> str:
    """As it is imported; a package by its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for package in ("sidecar", "onnx_builder") for file in (ROOT / package).rglob("*.py")}


def imported(file: Path) -> Iterator[str]:
    """The project's modules that a file imports, wherever in it, except those that only type checkers see."""
    waiting: list[ast.AST] = [ast.parse(file.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, file
            found = [f"{node.module}.{name.name}" for name in node.names]
            yield from (name if name in FILES else node.module or "" for name in found if name in FILES or node.module in FILES)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in FILES)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            waiting += ast.iter_child_nodes(node)


IMPORTS = {name: {*imported(file)} - {name} for name, file in FILES.items()}


def folder_of(module: str) -> str:
    """Its name among the floors: the folder below `sidecar`, the file where it is in none, or `onnx_builder/`."""
    package, _, below = module.partition(".")
    name = below.partition(".")[0] or "__init__"
    return "onnx_builder/" if package == "onnx_builder" else f"{name}/" if (ROOT / package / name).is_dir() else name


def test_a_folder_holds_ten_files_at_most():
    counts = Counter(file.parent for file in FILES.values() if file.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_no_file_imports_itself_by_way_of_others():
    assert set(IMPORTS["sidecar.serve.server"]) > {"sidecar.settings", "sidecar.monitoring.pages"}  # those in functions too
    graphlib.TopologicalSorter(IMPORTS).prepare()


def test_each_folder_imports_only_from_floors_below():
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    floors = {
        name: int(floor)
        for floor, names in re.findall(r"^    (\d)  (\S.*)$", architecture, flags=re.MULTILINE)
        for name in names.split()
    }
    assert floors.keys() == {folder_of(name) for name in FILES} - FRONT_DOORS
    for name, modules in IMPORTS.items():
        folder = folder_of(name)
        for module in modules if folder not in FRONT_DOORS else ():
            below = folder_of(module)
            assert below == folder or below in FRONT_DOORS or floors[below] < floors[folder], f"{name} imports {module}"
