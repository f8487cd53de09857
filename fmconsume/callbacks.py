"""Finds the user's callback by name and makes it ready to call, once, before anything connects.

The thread that starts a consumer calls it. An error that a person has to correct becomes a
ConfigurationException or a ValueError. Any other error of the user's own code is passed on as it
is, since its cause may pass, as a database that is not up yet.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from contextlib import nullcontext, suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Callable

from . import config
from .exceptions import ConfigurationException
from .text import describe

if TYPE_CHECKING:
    from .engine.coroutines import CoroutineRunner

__all__ = [
    "enter",
    "find_function",
    "instantiate",
    "is_entered",
    "is_of_leaving",
    "is_users_own",
    "leave",
    "load_from_file",
    "load_from_module",
    "locate",
    "prepare",
    "refuse_reactor",
    "search",
    "searched",
]

_REACTOR = "twisted.internet.reactor"


def search(app_dir: str | None = None) -> None:
    """Let this folder be searched for modules before any other.

    Python puts the directory of the installed script into sys.path, not the current one.

    Args:
        app_dir: A folder; None is the current directory.
    """
    with suppress(OSError):  # The current directory was deleted.
        folder = os.path.abspath(app_dir or "")
        if sys.path[:1] != [folder]:
            sys.path.insert(0, folder)


def searched() -> str:
    """Tell where modules were looked for: in the folder of `search`, $PYTHONPATH and packages."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [sys.path[0], *(f"{folder} ($PYTHONPATH)" for folder in named if folder)]
    return f"looked in {', '.join(folders)} and the packages of {sys.prefix}"


def load_from_module(path: str) -> Any:
    """Import an object.

    Args:
        path: "package.module:object"; the object may be dotted, as in "module:Class.method".

    Raises:
        ConfigurationException: The path does not parse, it names no module or no object, or the
            module has a syntax error or cannot import something.
        Exception: Whatever else the module raises.
    """
    module_name, name = _split(path, "package.module:object")
    try:
        module = _run(importlib.import_module, module_name)
    except (ImportError, SyntaxError) as exc:
        if isinstance(exc, ModuleNotFoundError) and _is_part_of(exc.name, module_name):
            raise ConfigurationException(
                f"callback {path!r}: no module named {exc.name!r}; {searched()}"
            ) from exc
        raise ConfigurationException(f"callback {path!r}: {_failure(module_name, exc)}") from exc
    return _object_of(module, name, path)


def load_from_file(path: str) -> Any:
    """Run a Python file and return an object from it.

    Args:
        path: "folder/file.py:object".

    Raises:
        ConfigurationException: The file does not exist, or is no .py file.
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


def prepare(callback: Any, coroutines: CoroutineRunner, workers: int = 1) -> Callable[..., Any]:
    """Return the object that is called with each message, as `instantiate` does.

    Args:
        callback: A function, an object or a class.
        coroutines: Its event loop is the current one while the class is instantiated; an error
            closes it.
        workers: Callbacks that are to run at the same time.

    Raises:
        ConfigurationException: The constructor imported Twisted's reactor.
        ValueError, Exception: As for `instantiate`; and if it would run that loop in several
            workers.
    """
    # A constructor can ask for the current loop only if its module has imported asyncio.
    is_asking = inspect.isclass(callback) and "asyncio" in sys.modules
    had_reactor = _REACTOR in sys.modules
    try:
        with coroutines.current_loop() if is_asking else nullcontext():
            ready = instantiate(callback)
        if inspect.isclass(callback):
            is_entered(ready)  # An error comes before anything runs.
        if not had_reactor:
            refuse_reactor()
        if is_asking and workers > 1:
            _refuse_workers(ready, coroutines.loop, workers)
    except BaseException:
        coroutines.close(0)
        raise
    return ready


def refuse_reactor() -> None:
    """Refuse a callback that has imported Twisted's reactor, unless the configuration says not to.

    Raises:
        ConfigurationException: It has.
    """
    if _REACTOR in sys.modules and config.conf["twisted_reactor"] == "refuse":
        raise ConfigurationException(
            f"the callback's module or constructor imported {_REACTOR}, which nobody runs here: "
            "what is left to it would never be done, and its messages be lost. Use threads or "
            'coroutines, or set twisted_reactor = "ignore" if no message depends on it'
        )


def _refuse_workers(callback: Any, loop: Any, workers: int) -> None:
    """Refuse several workers for a callback that runs coroutines itself on one event loop."""
    is_coroutine = inspect.iscoroutinefunction(find_function(callback))
    if not is_coroutine and any(
        each is loop for each in getattr(callback, "__dict__", {}).values()
    ):
        raise ValueError(
            f"workers: found {workers}, expected 1: {type(callback).__qualname__} keeps an event "
            "loop, which one thread at a time can run; or make __call__ async"
        )


def instantiate(callback: Any) -> Callable[..., Any]:
    """Return the object that is called with each message: the callback, or an instance of it.

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
    """Return the function that a call of the callback runs, behind partials, methods, __call__."""
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


def is_entered(callback: Any) -> bool:
    """Tell whether an object that was constructed here can be entered, by `with` or `async with`.

    In the place of fedora-messaging, which enters none, it never is.

    Raises:
        ValueError: It has only one half of that, or what `with` enters is a coroutine function.
    """
    if config.is_fedora_messaging:
        return False
    kinds = [kind for kind in ("", "a") if hasattr(callback, f"__{kind}enter__")]
    name = _name_of(type(callback))
    for kind in kinds:
        if not hasattr(callback, f"__{kind}exit__"):
            raise ValueError(f"callback: {name} has __{kind}enter__ and no __{kind}exit__")
    if "" in kinds and inspect.iscoroutinefunction(callback.__enter__):
        raise ValueError(
            f"callback: {name}.__enter__ is a coroutine function: call it __aenter__, and "
            "__exit__ __aexit__"
        )
    return bool(kinds)


async def enter(callback: Any, is_async: bool) -> None:
    """Enter a callback that is a context manager; await nothing unless it is an asynchronous one.

    Thread: where the callback runs.
    """
    if is_async:
        await callback.__aenter__()
    else:
        callback.__enter__()


async def leave(callback: Any, is_async: bool) -> None:
    """Leave a callback that was entered; no exception, since each had its message. See `enter`."""
    if is_async:
        await callback.__aexit__(None, None, None)
    else:
        callback.__exit__(None, None, None)


def is_users_own(exc: BaseException) -> bool:
    """Tell whether the callback's module, constructor or __enter__ raised an exception."""
    return _has_passed(exc, _run, enter)


def is_of_leaving(exc: BaseException) -> bool:
    """Tell whether the callback's __exit__ raised an exception."""
    return _has_passed(exc, leave)


def _has_passed(exc: BaseException, *functions: Any) -> bool:
    codes = [function.__code__ for function in functions]
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(exc.__traceback__))


def locate(exc: BaseException) -> str:
    """Describe an exception and the line that raised it, in one line."""
    if isinstance(exc, SyntaxError):  # Its own text names the file and the line at fault.
        return describe(exc)
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{describe(exc)} ({Path(last.filename).name}, line {last.lineno})"


def _run(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that runs the user's own code; `is_users_own` looks for this frame."""
    return function(*args)


def _construct(cls: Any) -> Any:
    try:
        return _run(cls)
    except TypeError as exc:
        # Two frames are ours. A third one means that the constructor ran, and raised this itself.
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
    """Refuse a callback whose signature does not accept one argument; an unknown one passes."""
    function = find_function(callback)
    # A mock, or the result of some decorators, is no function: it may accept any arguments.
    if type(function) not in (FunctionType, BuiltinFunctionType):
        return
    is_plain = isinstance(callback, (FunctionType, BuiltinFunctionType, MethodType, partial))
    called = callback if is_plain else callback.__call__
    try:
        # A decorator may add arguments: then __wrapped__ needs more than its wrapper accepts.
        signature = inspect.signature(called, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # Some functions that are written in C have no signature.
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
