"""Tests of the man page: readers accept it, and it tells of every option, key and exit status."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmconsume.cli import parser
from fmconsume.config import DEFAULTS
from fmconsume.exceptions import ExitCode
from tests.waiting import PATIENCE

HOUSE = Path(__file__).parents[2]

#: Tables whose keys are names of the user's choosing, or Python's, and keys that are filled in.
OPEN_TABLES = {"exchanges", "queues", "bindings", "log_config"}
RESERVED = {"client_properties.product", "client_properties.information"}


def run(*command: object, **environment: str) -> str:
    """Return what a command prints; it must not complain."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=HOUSE,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as it is built for a release, in a copy of the project."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("setup.py", "setup.cfg", "pyproject.toml"):
        shutil.copy(HOUSE / name, folder)
    for name in ("fmconsume", "man"):
        shutil.copytree(HOUSE / name, folder / name)
    (folder / "README.md").touch()
    command = [sys.executable, "setup.py", "--quiet", "build_manpages"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=PATIENCE)
    return folder / "man" / "fmconsume.1"


@pytest.fixture(scope="module")
def shown(page: Path) -> str:
    """The page as a terminal of 80 columns shows it, without bold and the like.

    groff indents by 7 columns, and from 1.24 on by 5: then the page is shown that much narrower,
    and moved to where it would be.
    """
    (indent,) = re.findall(r"^NAME\n( +)", _show(page, 80), re.MULTILINE)
    narrower = 7 - len(indent)
    shown = _show(page, 80 - narrower)
    return re.sub(rf"^{indent}", indent + " " * narrower, shown, flags=re.MULTILINE)


def _show(page: Path, width: int) -> str:
    plain = {"MANPAGER": "cat", "MAN_KEEP_FORMATTING": ""}
    text = run("man", "--no-justification", "-l", page, MANWIDTH=str(width), **plain)
    return re.sub(r".\x08|\x1b\[[\d;]*m", "", text)


def list_keys(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """List each key with its default."""
    for key, value in table.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and value and name not in OPEN_TABLES:
            yield from list_keys(value, f"{name}.")
        elif name not in RESERVED:
            yield name, value


def write_toml(value: Any) -> str:
    """Write a default as the page does."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_page_mandoc(page: Path) -> None:
    """BSD's reader finds nothing to complain about."""
    assert run("mandoc", "-T", "lint", page) == ""


def test_page_man(page: Path) -> None:
    """Nor does groff."""
    run("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", page, MANWIDTH="80", MANPAGER="cat")


def test_page_fits(shown: str) -> None:
    """No line is longer than a terminal is wide."""
    assert [line for line in shown.splitlines() if len(line) > 80] == []


def test_page_sections(shown: str) -> None:
    """The page has the sections that its readers look for, in their usual order."""
    assert re.findall("^[A-Z][A-Z ]+$", shown, re.MULTILINE) == [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "IN PLACE OF THE CONFIGURATION",
        "CALLBACKS",
        "CONFIGURATION",
        "EXACTLY ONCE",
        "SERVICE",
        "SIGNALS",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "EXAMPLES",
        "SEE ALSO",
        "AUTHOR",
    ]
    assert "fmconsume - consume messages from RabbitMQ queues\n" in shown
    assert "\n       fmconsume connects to a broker" in shown


@pytest.mark.parametrize(
    "option",
    [
        word
        for action in parser()._actions
        for word in action.option_strings
        if action.dest != "help"
    ],
)
def test_page_option(shown: str, option: str) -> None:
    """Each option has its entry."""
    assert re.search(rf"^ {{7}}(\S+ \S+, )?{option}\b", shown, re.MULTILINE)


@pytest.mark.parametrize(("key", "default"), list(list_keys(DEFAULTS)))
def test_page_key(shown: str, key: str, default: Any) -> None:
    """Each key of the configuration has its entry, with the default that holds."""
    if key in OPEN_TABLES:
        entry = rf"(\[\[)?{key}(\.name|\]\])?$"
    elif key == "monitoring":
        entry = r"monitoring\.port \(unset\)\n {7}monitoring.address \(\"localhost\"\)$"
    else:
        entry = rf"(\S+, )*{re.escape(key)}(, \S+)* \({re.escape(write_toml(default))}\)$"
    assert re.search(rf"^ {{7}}{entry}", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "key", ["passive", "durable", "routing_keys", "type", "arguments", "consumer_arguments"]
)
def test_page_inner_key(shown: str, key: str) -> None:
    """The keys of queues, exchanges and bindings are told of."""
    assert re.search(rf"\b{key}\b", shown)


@pytest.mark.parametrize("code", ExitCode)
def test_page_exit_status(shown: str, code: ExitCode) -> None:
    """Each exit status is explained."""
    assert re.search(rf"^ {{7}}{int(code)} {{4,6}}\S", shown, re.MULTILINE)


@pytest.mark.parametrize("name", ["FMCONSUME_CONF", "FEDORA_MESSAGING_CONF", "SIGTERM", "SIGINT"])
def test_page_names(shown: str, name: str) -> None:
    """Variables and signals have their entries."""
    assert re.search(rf"^ {{7}}(\w+, )?{name}", shown, re.MULTILINE)
