"""Finds the user's callback by name and makes it ready to call, once, before anything connects.

The thread that starts a consumer calls it. What the user's own code raises meanwhile leaves here as
it was raised, since it may pass: a database that is not up yet. What a person has to change is a
ConfigurationException or a ValueError.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Callable

from .exceptions import ConfigurationException
from .text import describe

if TYPE_CHECKING:
    from .engine.coroutines import CoroutineRunner

__all__ = [
    "find_function",
    "instantiate",
    "is_users_own",
    "load_from_file",
    "load_from_module",
    "locate",
    "prepare",
]


def load_from_module(path: str) -> Any:
    """Import an object.

    Args:
        path: "package.module:object"; the object may be dotted, as in "module:Class.method".

    Raises:
        ConfigurationException: The path does not parse, nothing is there, or code is missing
            that it imports.
        Exception: Whatever else the module raises.
    """
    module_name, name = _split(path, "package.module:object")
    try:
        module = _run(importlib.import_module, module_name)
    except (ImportError, SyntaxError) as exc:
        if isinstance(exc, ModuleNotFoundError) and _is_part_of(exc.name, module_name):
            raise ConfigurationException(
                f"callback {path!r}: no module named {exc.name!r}; looked in the current "
                "directory and in the installed packages"
            ) from exc
        raise ConfigurationException(f"callback {path!r}: {_failure(module_name, exc)}") from exc
    return _object_of(module, name, path)


def load_from_file(path: str) -> Any:
    """Run a Python file and take an object of it.

    Args:
        path: "folder/file.py:object".

    Raises:
        ConfigurationException, Exception: As for `load_from_module`.
    """
    file_name, name = _split(path, "path/to/file.py:object")
    if not os.path.isfile(file_name):
        raise ConfigurationException(f"callback file {file_name!r} does not exist")
    module_name = f"fmconsume_callback_{Path(file_name).stem}"
    spec = importlib.util.spec_from_file_location(module_name, file_name)
    if spec is None or spec.loader is None:
        raise ConfigurationException(
            f"callback file {file_name!r}: expected the name of a .py file"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        _run(spec.loader.exec_module, module)
    except (ImportError, SyntaxError) as exc:
        raise ConfigurationException(_failure(file_name, exc)) from exc
    return _object_of(module, name, path)


def prepare(callback: Any, coroutines: CoroutineRunner) -> Callable[..., Any]:
    """Give something to call with a message; its coroutines will run on that runner.

    Raises:
        ValueError, Exception: As for `instantiate`.
    """
    # A class may ask for the current loop in its constructor; it imported asyncio then.
    is_asking = inspect.isclass(callback) and "asyncio" in sys.modules
    try:
        with coroutines.current_loop() if is_asking else nullcontext():
            return instantiate(callback)
    except BaseException:
        coroutines.close(0)
        raise


def instantiate(callback: Any) -> Callable[..., Any]:
    """Give something to call with a message: the object itself, or an instance of the class.

    Raises:
        ValueError: It cannot be called with a message, or is a class that wants arguments.
        Exception: Whatever else the constructor raises.
    """
    if inspect.isclass(callback):
        callback = _construct(callback)
    if not callable(callback):
        raise ValueError(
            f"callback: found {callback!r}, expected a function, or a class with __call__"
        )
    _refuse_generator(callback)
    _refuse_other_arguments(callback)
    return callback  # type: ignore[no-any-return]


def find_function(callback: Any) -> Any:
    """Find what a call of the callback runs, behind partials, methods and __call__."""
    while not isinstance(callback, (FunctionType, BuiltinFunctionType)):
        if isinstance(callback, partial):
            callback = callback.func
        elif isinstance(callback, MethodType):
            callback = callback.__func__
        elif isinstance(type(callback).__call__, (FunctionType, MethodType)):
            callback = type(callback).__call__
        else:
            break
    return callback


def is_users_own(exc: BaseException) -> bool:
    """Tell whether the user's module or constructor raised it, and not this package."""
    frames = traceback.walk_tb(exc.__traceback__)
    return any(frame.f_code is _run.__code__ for frame, _ in frames)


def locate(exc: BaseException) -> str:
    """Say what was raised and where, in one line."""
    if isinstance(exc, SyntaxError):  # It says so itself, and better.
        return describe(exc)
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{describe(exc)} ({Path(last.filename).name}, line {last.lineno})"


def _run(function: Callable[..., Any], *args: Any) -> Any:
    """Call what runs the user's own code; `is_users_own` finds this call in a traceback."""
    return function(*args)


def _construct(cls: Any) -> Any:
    try:
        return _run(cls)
    except TypeError as exc:
        # The last call was ours: no line of the constructor's has run.
        if len(traceback.extract_tb(exc.__traceback__)) > 2:
            raise
        what = f"callback class {cls.__module__}.{cls.__qualname__} could not be constructed"
        raise ValueError(f"{what}: {describe(exc)}; it is called without arguments") from exc


def _refuse_generator(callback: Any) -> None:
    function = find_function(callback)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(
            f"callback: {_name_of(function)} contains a yield, so calling it would run nothing and "
            "each message would be lost: expected a function that returns"
        )


def _refuse_other_arguments(callback: Any) -> None:
    """Refuse what cannot be called with a message, as far as that can be told."""
    function = find_function(callback)
    # What only passes for a function, as a mock or some decorators' result, may take what it likes.
    if type(function) not in (FunctionType, BuiltinFunctionType):
        return
    is_plain = isinstance(callback, (FunctionType, BuiltinFunctionType, MethodType, partial))
    called = callback if is_plain else callback.__call__
    try:
        # A decorator that adds arguments says with __wrapped__ what it calls, not how it is called.
        signature = inspect.signature(called, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # Some that are written in C have none.
    try:
        signature.bind(None)
    except TypeError as exc:
        raise ValueError(
            f"callback: {_name_of(function)} cannot be called with one argument, the message: {exc}"
        ) from exc


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", repr(function)))


def _split(path: str, expected: str) -> tuple[str, str]:
    module, colon, name = path.strip().rpartition(":")
    if not (module and colon and name):
        raise ConfigurationException(f"callback: found {path!r}, expected {expected!r}")
    return module, name


def _is_part_of(missing: Any, module_name: str) -> bool:
    return f"{module_name}.".startswith(f"{missing}.")


def _object_of(module: ModuleType, name: str, path: str) -> Any:
    try:
        return _run(attrgetter(name), module)
    except AttributeError as exc:
        raise ConfigurationException(
            f"callback {path!r}: {module.__name__} has no {name!r}"
        ) from exc


def _failure(where: str, exc: BaseException) -> str:
    is_alias_missing = isinstance(exc, ModuleNotFoundError) and exc.name == "fedora_messaging"
    hint = "; run it with --as-fedora-messaging" if is_alias_missing else ""
    return f"importing {where} failed: {locate(exc)}{hint}"
