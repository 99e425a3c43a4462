"""The architecture: imports point down, from the command to the kernels, and nothing goes round in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. A module may import what stands on a lower floor, and the modules of its own folder.
FLOORS = (
    ("_core", "_plain", "choices", "extras", "page", "schema", "terminal", "version"),
    ("distributed", "functions", "kernels", "progress"),
    ("ops",),
    ("networks",),
    ("tickets",),
    ("data", "events", "models", "sparse"),
    ("export", "pooling", "pruning"),
    ("presets", "reporting"),
    ("directory",),
    ("run",),
    ("own",),
    ("experiments",),
    ("info",),
    ("options",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("lpk", "lpk/kernels")  # a link in the tree, into which ** does not go
    for path in (ROOT / folder).glob("**/*.py")
}
NAMES = {*MODULES, "lpk._core", "lpk._plain"}


def imports(module: str) -> Iterator[tuple[int, str]]:
    """What a module of lpk imports of lpk, by line: modules, or "module:name" where the name is none."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.partition(".")[0] == "lpk")
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").partition(".")[0] == "lpk"):
            assert not node.level, f"{module}, line {node.lineno}: imports name the package"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in NAMES else f"{node.module}:{alias.name}"


def room(module: str) -> str:
    """The folder of a module, or the module itself where it stands beside the folders."""
    return module.split(".")[1] if "." in module else "__init__"


def upward(module: str) -> list[str]:
    """Imports of a module that do not point down."""
    own = room(module)
    return [
        f"{module}, line {line}: imports {imported}"
        for line, imported in imports(module)
        if room(imported.partition(":")[0]) != own and FLOOR[room(imported.partition(":")[0])] >= FLOOR[own]
    ]


def test_every_room_has_a_floor():
    assert {room(module) for module in NAMES} == set(FLOOR)


def test_imports_point_down():
    assert [line for module in sorted(MODULES) for line in upward(module)] == []


def test_an_import_that_points_up_is_found(tmp_path, monkeypatch):
    for line in (
        "from lpk import pool",
        "import lpk.cli",
        "from lpk.pooling.pool import pool",
        "from lpk import run",
    ):
        path = tmp_path / "flat.py"
        path.write_text(f"def late():\n    {line}\n")
        monkeypatch.setitem(MODULES, "lpk.networks.flat", path)
        assert len(upward("lpk.networks.flat")) == 1


def test_no_circles():
    graph = {module: {name.partition(":")[0] for _, name in imports(module)} & set(MODULES) for module in MODULES}
    for module in graph:  # a folder's face is imported with its modules, and may import them
        graph[module] -= {module.rpartition(".")[0]}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_what_is_private_stays_in_its_module():
    private = [
        f"{module}: {name}"
        for module in sorted(MODULES)
        for _, name in imports(module)
        if name.partition(":")[2].startswith("_")
    ]
    assert private == []


@pytest.mark.parametrize("folder", sorted({room(module) for module in MODULES if module.count(".") > 1}))
def test_a_folder_says_what_its_modules_are(folder):
    face = ROOT / "lpk" / folder / "__init__.py"
    said = ast.get_docstring(ast.parse(face.read_text())) or ""
    modules = [path.stem for path in face.parent.glob("*.py") if path.stem != "__init__"]
    assert [name for name in modules if name not in said] == []
