"""Tests that the map and the life of a message in CONTRIBUTING.md are those of the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from .test_layers import HOUSE, MODULES, parse

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Give a section of the document."""
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def test_map_names_every_module() -> None:
    """The map names each module once, in a row of its folder, and none that is not there."""
    named = []
    for row in section("The map").splitlines()[3:]:
        _, floor, modules, *_ = (*row.split("|"), "", "")
        folder = "".join(re.findall(r"`(\w+/)`", floor))
        named += [f"{folder}{name}" for name in re.findall(r"`(\w+)\.py`", modules)]
    assert sorted(named) == sorted(name for name in MODULES if not name.endswith("/__init__"))


@cache
def list_names() -> set[str]:
    """List classes, functions and methods of the package, a method with its class."""
    names = set()
    for module in MODULES:
        for node in parse(module).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names.add(node.name)
                members = node.body if isinstance(node, ast.ClassDef) else []
                names |= {f"{node.name}.{each.name}" for each in members if hasattr(each, "name")}
    return names


@pytest.mark.parametrize("name", re.findall(r"`([A-Za-z_./]+)`", section("The life of a message")))
def test_life_names_what_there_is(name: str) -> None:
    """Each class, method and file on the way of a message exists."""
    assert (HOUSE / name).is_file() if name.endswith(".py") else name in list_names()
