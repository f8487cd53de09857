"""Tests of the house: imports point down only, and `__all__` is exact."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fmconsume

HOUSE = Path(fmconsume.__file__).parent

#: Lowest first, a folder with a slash. A module imports from its own floor or from one below, and
#: nothing imports in circles.
FLOORS = (
    "text version redaction exceptions delivery context wakeup log console moments shortage "
    "schema_utils amqp_url stopping",
    "config config_checks config_file environment schema identity",
    "state/",
    "headers message_classes decoding jsonlines message callbacks example",
    "broker/",
    "engine/",
    "service/ wiring",
    "publisher inbox recording checking kept requeueing peeking programs watch reloading",
    "api testing",
    "compat/ __init__",
    "cli __main__ compat/__main__",
)


def find_floor(module: str) -> int:
    """Give the floor of a module: its own, or that of its folder."""
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
    return floor_of[module] if module in floor_of else floor_of[f"{module.rpartition('/')[0]}/"]


MODULES = sorted(str(path.relative_to(HOUSE).with_suffix("")) for path in HOUSE.rglob("*.py"))
#: These offer under one roof what other modules define.
FACADES = {"__init__", "api", "config", "message", "testing"}
#: These are run or read, not imported from.
WITHOUT_ALL = {
    "__main__",
    "compat/__main__",
    "version",
    "broker/__init__",
    "engine/__init__",
    "service/__init__",
    "state/__init__",
}


@cache
def parse(module: str) -> ast.Module:
    """Read a module's source."""
    source = (HOUSE / f"{module}.py").read_text(encoding="utf-8")
    # Python 3.11 fails to parse when a finalizer logs meanwhile, of what other tests left behind.
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        gc.enable()


def walk_imports(tree: ast.AST) -> Iterator[ast.stmt]:
    """Find every import, wherever it stands, except for those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from walk_imports(other)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        else:
            yield from walk_imports(node)


def resolve(module: str, statement: ast.ImportFrom) -> Iterator[str]:
    """Tell which of our modules a relative import means."""
    package = (HOUSE / module).parent
    for _ in range(statement.level - 1):
        package = package.parent
    base = package.joinpath(*(statement.module or "").split("."))
    for alias in statement.names:
        target = base / alias.name
        if not (target.is_dir() or target.with_suffix(".py").is_file()):
            target = base
        target = target / "__init__" if target.is_dir() else target
        yield str(target.relative_to(HOUSE))


def list_imports(module: str) -> set[str]:
    """List the modules of ours that a module imports at run time."""
    found = set()
    for statement in walk_imports(parse(module)):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif statement.level:
            found.update(resolve(module, statement))
            continue
        else:
            names = [str(statement.module)]
        ours = [name for name in names if name.split(".")[0] == "fmconsume"]
        assert not ours, f"{module} imports {ours[0]}; inside the house imports are relative"
    return found


def test_floors_exact() -> None:
    """Every module has its floor, and nothing has one that is not there."""
    named = {name for names in FLOORS for name in names.split()}
    folders = {f"{name.rpartition('/')[0]}/" for name in MODULES if "/" in name}
    assert named <= {*MODULES, *folders}
    assert {name for name in MODULES if "/" not in name} | folders <= named


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """A module imports only from its own floor and from those below."""
    floor = find_floor(module)
    assert [name for name in list_imports(module) if find_floor(name) > floor] == []


def test_imports_without_circles() -> None:
    """Nothing imports itself, by whatever way round."""
    imports = {module: list_imports(module) for module in MODULES}
    while True:
        free = [module for module, names in imports.items() if not names & imports.keys()]
        if not free:
            break
        for module in free:
            del imports[module]
    assert not imports, "a circle is among these"


def test_list_imports_sees_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at imports misses no spelling, and leaves out what only type checkers see."""
    monkeypatch.setitem(list_imports.__globals__, "HOUSE", tmp_path)
    for folder in ("engine", "service"):
        (tmp_path / folder).mkdir()
    for name in ("api", "cli", "config", "engine/a", "engine/b", "engine/c", "engine/__init__"):
        (tmp_path / f"{name}.py").write_text("", encoding="utf-8")
    source = """
from typing import TYPE_CHECKING
from . import a, b as other
from .c import name
from .. import config
if TYPE_CHECKING:
    from ..cli import main
def late():
    from ..api import consume
"""
    (tmp_path / "engine" / "d.py").write_text(source, encoding="utf-8")
    expected = {"engine/a", "engine/b", "engine/c", "config", "api"}
    assert list_imports("engine/d") == expected


def list_bound(module: str, *, is_import: bool) -> set[str]:
    """List the public names that a module defines, or imports."""
    names: set[str] = set()
    for node in parse(module).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if is_import:
                names.update((a.asname or a.name).partition(".")[0] for a in node.names)
        elif is_import:
            continue
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names.update(n.id for n in ast.walk(target) if isinstance(n, ast.Name))
    return {name for name in names if not name.startswith("_")}


def read_all(module: str) -> list[str]:
    """Read a module's `__all__` where it stands."""
    for node in parse(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no __all__")


@pytest.mark.parametrize("module", [name for name in MODULES if name not in WITHOUT_ALL])
def test_all_is_exact(module: str) -> None:
    """`__all__` names each public definition of the module once, and nothing else."""
    names = read_all(module)
    assert len(names) == len(set(names))
    defined, imported = (list_bound(module, is_import=flag) for flag in (False, True))
    if module in FACADES:
        assert defined <= set(names) <= defined | imported | {"__version__"}
    else:
        assert set(names) == defined
