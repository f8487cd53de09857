"""Tests of finding the callback: each mistake has its own message."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any, Callable
from unittest.mock import Mock

import pytest

from fmconsume.callbacks import (
    instantiate,
    is_users_own,
    load_from_file,
    load_from_module,
    locate,
    search,
)
from fmconsume.exceptions import ConfigurationException

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules into a folder that is searched for imports; forget them afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def complaint(load: Callable[[str], Any], path: str) -> str:
    """Give the message of the error that loading ends with: a single line."""
    with pytest.raises(ConfigurationException) as caught:
        load(path)
    (line,) = caught.value.message.splitlines()
    return line


GOOD = "class Basket:\n    @staticmethod\n    def take(message): return 'taken'\n"


def test_load_from_module_object(write: Write) -> None:
    """An object is found by module and name."""
    write("orchard/__init__.py", "")
    write("orchard/picker.py", "def pick(message): return 'picked'\n")
    assert load_from_module("orchard.picker:pick")(None) == "picked"


def test_load_from_module_dotted_object(write: Write) -> None:
    """The object may be an attribute of another one."""
    write("orchard.py", GOOD)
    assert load_from_module("orchard:Basket.take")(None) == "taken"


def test_load_from_module_spaces_around(write: Write) -> None:
    """Spaces around the path do not count."""
    write("orchard.py", GOOD)
    assert load_from_module(" orchard:Basket ").__name__ == "Basket"


@pytest.mark.parametrize("path", ["orchard", "orchard.pick", ":pick", "orchard:", "", ":"])
def test_load_from_module_malformed_path(path: str) -> None:
    """A path without a colon, or with nothing on one side, says what is expected."""
    line = complaint(load_from_module, path)
    assert f"found {path!r}, expected 'package.module:object'" in line


@pytest.mark.parametrize(
    ("path", "missing"),
    [("meadow:pick", "'meadow'"), ("orchard.barn:pick", "'orchard.barn'")],
)
def test_load_from_module_no_such_module(
    write: Write, monkeypatch: pytest.MonkeyPatch, path: str, missing: str
) -> None:
    """A module that is not there is named, and where it was looked for."""
    write("orchard/__init__.py", "")
    monkeypatch.setenv("PYTHONPATH", ":/srv/more")
    monkeypatch.chdir("/")
    search()
    assert complaint(load_from_module, path) == (
        f"callback {path!r}: no module named {missing}; looked in /, "
        f"/srv/more ($PYTHONPATH) and the packages of {sys.prefix}"
    )


def test_search_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that is named is searched before all others."""
    monkeypatch.chdir(tmp_path)
    write("src/orchard.py", GOOD)
    write("orchard.py", "pick = None")
    search("src")
    assert load_from_module("orchard:Basket.take")(None) == "taken"
    assert f"; looked in {tmp_path}/src" in complaint(load_from_module, "meadow:pick")


def test_load_from_module_parent_is_no_package(write: Write) -> None:
    """A module below one that is no package is not there either."""
    write("orchard.py", GOOD)
    assert "no module named 'orchard.barn'" in complaint(load_from_module, "orchard.barn:pick")


@pytest.mark.parametrize(
    ("text", "reason", "line_number"),
    [
        ("\nimport meadow\n", "ModuleNotFoundError: No module named 'meadow'", 2),
        ("from os import meadow\n", "ImportError: cannot import name 'meadow' from 'os'", 1),
    ],
)
def test_load_from_module_import_fails(
    write: Write, text: str, reason: str, line_number: int
) -> None:
    """What the module imports and is not there is told apart, with file and line."""
    write("orchard.py", text)
    line = complaint(load_from_module, "orchard:pick")
    assert line.startswith("callback 'orchard:pick': importing orchard failed: ")
    assert reason in line
    assert f"(orchard.py, line {line_number})" in line


def test_load_from_module_syntax_error(write: Write) -> None:
    """A syntax error is told with file and line of the module."""
    write("orchard.py", "\ndef pick(:\n")
    line = complaint(load_from_module, "orchard:pick")
    assert "SyntaxError" in line
    assert "(orchard.py, line 2)" in line
    assert "importlib" not in line


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("raise ConnectionRefusedError('database')\n", ConnectionRefusedError),
        ("raise ValueError('too early')\n", ValueError),
        ("import sys\nsys.exit(0)\n", SystemExit),
    ],
)
@pytest.mark.parametrize("load", [load_from_module, load_from_file])
def test_load_what_raises(
    write: Write, load: Callable[[str], Any], text: str, error: type[BaseException]
) -> None:
    """What the module itself raises may pass: it leaves as it is, and is known for the user's."""
    path = write("orchard.py", text)
    with pytest.raises(error) as caught:
        load("orchard:pick" if load is load_from_module else f"{path}:pick")
    assert is_users_own(caught.value)
    assert locate(caught.value).endswith(f"(orchard.py, line {text.count(chr(10))})")


@pytest.mark.parametrize("path", ["meadow:pick", "orchard:plant", "broken:pick", "orchard"])
def test_load_mistake_is_not_the_users_own(write: Write, path: str) -> None:
    """What a person has to change is not taken for what the user's code raises."""
    write("orchard.py", GOOD)
    write("broken.py", "def pick(:\n")
    with pytest.raises(ConfigurationException) as caught:
        load_from_module(path)
    assert not is_users_own(caught.value)


def test_load_from_file_in_a_folder_that_is_closed(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that may not even be looked for does not exist for this command."""
    path = write("barn/loft.py", GOOD)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    assert complaint(load_from_file, f"{path}:pick").endswith("does not exist")


@pytest.mark.parametrize("name", ["pick", "Basket.lid", "a..b"])
def test_load_from_module_no_such_object(write: Write, name: str) -> None:
    """An object that the module does not have is named."""
    write("orchard.py", GOOD)
    path = f"orchard:{name}"
    assert complaint(load_from_module, path) == f"callback {path!r}: orchard has no {name!r}"


def test_load_from_file_object(write: Write) -> None:
    """An object is found by file and name, wherever the file lies."""
    path = write("barn/loft.py", GOOD)
    assert load_from_file(f"{path}:Basket.take")(None) == "taken"


def test_load_from_file_is_module(write: Write) -> None:
    """The file is a module like any other: classes in it know where they come from."""
    path = write("loft.py", "class Apple: pass\n")
    cls = load_from_file(f"{path}:Apple")
    assert sys.modules[cls.__module__].Apple is cls


@pytest.mark.parametrize("path", ["loft.py", ":pick", "loft.py:"])
def test_load_from_file_malformed_path(path: str) -> None:
    """A path without a colon says what is expected."""
    line = complaint(load_from_file, path)
    assert f"found {path!r}, expected 'path/to/file.py:object'" in line


def test_load_from_file_no_such_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    line = complaint(load_from_file, f"{tmp_path}/loft.py:pick")
    assert line == f"callback file '{tmp_path}/loft.py' does not exist"


def test_load_from_file_of_other_kind(write: Write) -> None:
    """A file that Python does not import is told as such."""
    path = write("loft.txt", "")
    assert "expected the name of a .py file" in complaint(load_from_file, f"{path}:pick")


def test_load_from_file_import_fails(write: Write) -> None:
    """What goes wrong inside the file is told with the line."""
    path = write("loft.py", "\nimport meadow\n")
    line = complaint(load_from_file, f"{path}:pick")
    assert f"importing {path} failed: ModuleNotFoundError: No module named 'meadow'" in line
    assert "(loft.py, line 2)" in line


def test_load_from_file_no_such_object(write: Write) -> None:
    """An object that the file does not have is named."""
    path = write("loft.py", GOOD)
    assert complaint(load_from_file, f"{path}:pick").endswith("has no 'pick'")


def function(message: Any) -> None:
    """Take a message."""


async def coroutine_function(message: Any) -> None:
    """Take a message."""


class Taker:
    """Takes messages in several ways."""

    def __call__(self, message: Any) -> None:
        """Take a message."""

    def method(self, message: Any) -> None:
        """Take a message."""


class AsyncTaker:
    """Takes messages, asynchronously."""

    async def __call__(self, message: Any) -> None:
        """Take a message."""


class Generous:
    """Takes messages through what is no plain method."""

    __call__ = classmethod(lambda cls, message: None)


def give_basket(function: Any) -> Any:
    """Call a function with a basket more than it is called with."""

    @wraps(function)
    def call(message: Any) -> Any:
        return function(message, "basket")

    return call


@give_basket
def decorated(message: Any, basket: str) -> None:
    """Take a message and a basket."""


@pytest.mark.parametrize(
    "callback",
    [
        function,
        coroutine_function,
        Taker(),
        Taker().method,
        AsyncTaker(),
        partial(function),
        partial(partial(Taker())),
        Generous(),
        decorated,
        Mock(),
        Mock(spec=Taker),
        print,
    ],
)
def test_instantiate_callable(callback: Any) -> None:
    """Whatever can be called is taken as it is."""
    assert instantiate(callback) is callback


@pytest.mark.parametrize("cls", [Taker, AsyncTaker])
def test_instantiate_class(cls: type) -> None:
    """A class is instantiated."""
    assert type(instantiate(cls)) is cls


@pytest.mark.parametrize("callback", [None, 7, "orchard:pick", {}, object()])
def test_instantiate_not_callable(callback: Any) -> None:
    """What cannot be called is an error that shows it."""
    with pytest.raises(ValueError, match=r"^callback: found .*, expected a function") as caught:
        instantiate(callback)
    assert repr(callback) in str(caught.value)


class Silent:
    """Cannot be called."""


def test_instantiate_class_without_call() -> None:
    """A class whose instances cannot be called is told apart from a good one."""
    with pytest.raises(ValueError, match=r"^callback: found .*Silent.*or a class with __call__"):
        instantiate(Silent)


class Needy(Taker):
    """Wants an argument."""

    def __init__(self, size: int) -> None:
        self.size = size


class Broken(Taker):
    """Fails with a TypeError of its own."""

    def __init__(self) -> None:
        len(7)  # type: ignore[arg-type]


class Homeless(Taker):
    """Fails with many words."""

    def __init__(self) -> None:
        raise RuntimeError("no such\nplace")


class Leaving(Taker):
    """Ends the process."""

    def __init__(self) -> None:
        sys.exit(0)


def test_instantiate_class_needs_arguments() -> None:
    """A class that wants arguments is told that it gets none."""
    with pytest.raises(ValueError, match=r"Needy could not be constructed: TypeError: ") as caught:
        instantiate(Needy)
    assert str(caught.value).endswith("; it is called without arguments")


@pytest.mark.parametrize(
    ("cls", "error", "text"),
    [
        (Broken, TypeError, "TypeError: object of type 'int'"),
        (Homeless, RuntimeError, "RuntimeError: no such place ("),
        (Leaving, SystemExit, "SystemExit: 0 ("),
    ],
)
def test_instantiate_class_fails(cls: type, error: type[BaseException], text: str) -> None:
    """What a constructor raises leaves as it is; it is told in one line, with file and line."""
    with pytest.raises(error) as caught:
        instantiate(cls)
    assert is_users_own(caught.value)
    assert locate(caught.value).startswith(text)
    assert "(test_callbacks.py, line " in locate(caught.value)


def generate(message: Any) -> Iterator[None]:
    """Take a message, if anybody asks for what it yields."""
    yield


async def generate_async(message: Any) -> AsyncIterator[None]:
    """Take a message, if anybody asks for what it yields."""
    yield


class Generator:
    """Takes messages in vain."""

    def __call__(self, message: Any) -> Iterator[None]:
        """Take a message, if anybody asks for what it yields."""
        yield


class AsyncGenerator:
    """Takes messages in vain."""

    async def __call__(self, message: Any) -> AsyncIterator[None]:
        """Take a message, if anybody asks for what it yields."""
        yield


@pytest.mark.parametrize(
    "callback",
    [
        generate,
        generate_async,
        Generator,
        Generator(),
        Generator().__call__,
        AsyncGenerator,
        AsyncGenerator(),
        partial(generate),
        partial(partial(Generator())),
    ],
)
def test_instantiate_generator(callback: Any) -> None:
    """What contains a yield would run nothing, and is refused in every disguise."""
    with pytest.raises(ValueError, match=r"^callback: .* contains a yield, so .* expected a "):
        instantiate(callback)


def lonely() -> None:
    """Take nothing."""


def demanding(message: Any, basket: Any) -> None:
    """Take a message and something else."""


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (lonely, "lonely cannot be called with one argument, the message: too many positional"),
        (demanding, "the message: missing a required argument: 'basket'"),
        (Taker.method, "missing a required argument: 'message'"),
        (partial(function, 1), "function cannot be called"),
        (type("Lonely", (), {"__call__": lambda self: None}), "cannot be called with one"),
    ],
)
def test_instantiate_wrong_signature(callback: Any, text: str) -> None:
    """What does not take one argument is refused, with how it would be called."""
    with pytest.raises(ValueError, match=r"^callback: ") as caught:
        instantiate(callback)
    assert text in str(caught.value)


class Speechless(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError
