"""Finds the user's callback by name and makes it ready to call, once, before anything connects."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from contextlib import nullcontext
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

from .engine.coroutines import CoroutineRunner
from .exceptions import ConfigurationException

__all__ = ["instantiate", "load_from_file", "load_from_module", "prepare"]


def load_from_module(path: str) -> Any:
    """Import an object.

    Args:
        path: "package.module:object"; the object may be dotted, as in "module:Class.method".

    Raises:
        ConfigurationException: The path does not parse, nothing is there, or importing fails.
    """
    module_name, name = _split(path, "package.module:object")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as exc:
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
        ConfigurationException: As for `load_from_module`.
    """
    file_name, name = _split(path, "path/to/file.py:object")
    if not Path(file_name).is_file():
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
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as exc:
        raise ConfigurationException(_failure(file_name, exc)) from exc
    return _object_of(module, name, path)


def prepare(callback: Any, coroutines: CoroutineRunner) -> Callable[..., Any]:
    """Give something to call with a message; its coroutines will run on that runner.

    Raises:
        ValueError: As for `instantiate`.
    """
    # A class may ask for the current loop in its constructor; it imported asyncio then.
    is_asking = inspect.isclass(callback) and "asyncio" in sys.modules
    try:
        with coroutines.current_loop() if is_asking else nullcontext():
            return instantiate(callback)
    except ValueError:
        coroutines.close(0)
        raise


def instantiate(callback: Any) -> Callable[..., Any]:
    """Give something to call with a message: the object itself, or an instance of the class.

    Raises:
        ValueError: It cannot be called, or its class cannot be constructed.
    """
    if inspect.isclass(callback):
        callback = _construct(callback)
    if not callable(callback):
        raise ValueError(
            f"callback: found {callback!r}, expected a function, or a class with __call__"
        )
    return callback  # type: ignore[no-any-return]


def _construct(cls: Any) -> Any:
    try:
        return cls()
    except (Exception, SystemExit) as exc:
        what = f"callback class {cls.__module__}.{cls.__qualname__} could not be constructed"
        hint = "; it is called without arguments" if _is_call_error(exc) else ""
        raise ValueError(f"{what}: {_describe(exc)}{hint}") from exc


def _is_call_error(exc: BaseException) -> bool:
    """Tell a TypeError of the call from one raised inside the constructor."""
    return isinstance(exc, TypeError) and len(traceback.extract_tb(exc.__traceback__)) == 1


def _split(path: str, expected: str) -> tuple[str, str]:
    module, colon, name = path.strip().rpartition(":")
    if not (module and colon and name):
        raise ConfigurationException(f"callback: found {path!r}, expected {expected!r}")
    return module, name


def _is_part_of(missing: Any, module_name: str) -> bool:
    return f"{module_name}.".startswith(f"{missing}.")


def _object_of(module: ModuleType, name: str, path: str) -> Any:
    try:
        return attrgetter(name)(module)
    except AttributeError as exc:
        raise ConfigurationException(
            f"callback {path!r}: {module.__name__} has no {name!r}"
        ) from exc


def _failure(where: str, exc: BaseException) -> str:
    is_alias_missing = isinstance(exc, ModuleNotFoundError) and exc.name == "fedora_messaging"
    hint = "; run it with --as-fedora-messaging" if is_alias_missing else ""
    return f"importing {where} failed: {_describe(exc)}{hint}"


def _describe(exc: BaseException) -> str:
    """Say what was raised and where, in one line."""
    last = traceback.extract_tb(exc.__traceback__)[-1]
    text = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
    if isinstance(exc, SyntaxError):  # It says so itself, and better.
        return text
    return f"{text} ({Path(last.filename).name}, line {last.lineno})"
