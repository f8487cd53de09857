"""The message classes: found by their schema names, among the entry points of installed packages.

A class is imported when it is first needed. Any thread may call.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from . import config
from .headers import PACKAGE, SCHEMA
from .log import get_logger, warn_once
from .text import brief

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

    from .message import Message

__all__ = [
    "base_class",
    "choose_class",
    "count_declared",
    "get_class",
    "get_name",
    "load_message_classes",
    "register_base",
]

# The name that users see, and may have set a level for.
_log = get_logger("fmconsume.message")

_GROUPS = ("fmconsume.messages", "fedora.messages")
_ALIAS_HINT = "if it is made for fedora-messaging, run with --as-fedora-messaging"

# The names of these three are fedora-messaging's: tests of message packages use and change them.
_schema_name_to_class: dict[str, type[Message]] = {}
_class_to_schema_name: dict[type[Message], str] = {}
_schema_name_to_package: dict[str, str] = {}

#: Message itself. fmconsume.message sets it when it is imported, before any function here runs.
_base: type[Message]


def register_base(cls: type[Message]) -> None:
    """Register the class that is the base of all others.

    Its name is taken from then on: fedora-messaging, if installed, declares its own
    class by the same name.
    """
    global _base
    _base = cls
    _register("base.message", cls)


def base_class() -> type[Message]:
    """Return Message, the class of each message that names no other class."""
    return _base


def choose_class(headers: dict[str, Any], body: Any) -> type[Message]:
    """Choose the class of a message.

    Returns:
        The class that the headers name. Message if they name none, if there is no such
        class (with a warning), or if the body is not an object.
    """
    name = headers.get(SCHEMA)
    if not isinstance(name, str) or not isinstance(body, dict):
        return _base
    return _schema_name_to_class.get(name) or _find_class(name, headers.get(PACKAGE))


def get_class(schema_name: str) -> type[Message]:
    """Return the class for a schema name, or Message (and a warning) if there is none."""
    return _find_class(schema_name, None)


def get_name(cls: type[Message]) -> str:
    """Return the schema name of a message class.

    Raises:
        TypeError: The class is not registered.
    """
    if cls not in _class_to_schema_name:
        load_message_classes()
    try:
        return _class_to_schema_name[cls]
    except KeyError as exc:
        group = _GROUPS[config.is_fedora_messaging]
        raise TypeError(
            f"{cls.__module__}.{cls.__qualname__} is not a registered message class: declare it "
            f"as an entry point in the group {group!r} and install its package"
        ) from exc


def count_declared() -> int:
    """Count the message classes that installed packages declare."""
    return len(_declarations())


def load_message_classes() -> None:
    """Import every message class that an installed package declares."""
    for name in _declarations().keys() - _schema_name_to_class.keys():
        _load_class(name)


def _find_class(name: str, package: object) -> type[Message]:
    cls = _schema_name_to_class.get(name) or _load_class(name)
    if cls is None and name not in _declarations():
        warn_once(
            *(_log, "schema", name, "no class for message schema %r, using Message; install %s"),
            brief(repr(package)) if package else "the package that defines it",
        )
    return cls or _base


def _load_class(name: str) -> type[Message] | None:
    declaration = _declarations().get(name)
    if declaration is None:
        return None
    entry_point, package = declaration
    try:
        cls = _import_class(entry_point)
    except (Exception, SystemExit) as exc:
        _declarations()[name] = None
        _log.error(
            "message class %s = %s of package %s cannot be used, its messages come as Message: %s",
            *(name, entry_point.value, package, brief(f"{type(exc).__name__}: {exc}")),
        )
        return None
    # The package first: another thread that finds the class needs the package, too.
    _schema_name_to_package[name] = re.sub(r"[-_.]+", "_", package).lower()
    _register(name, cls)
    return cls


def _register(name: str, cls: type[Message]) -> None:
    _schema_name_to_class[name], _class_to_schema_name[cls] = cls, name


def _import_class(entry_point: EntryPoint) -> type[Message]:
    try:
        cls = entry_point.load()
    except ModuleNotFoundError as exc:
        if str(exc.name).partition(".")[0] != "fedora_messaging":
            raise
        raise ImportError(f"{exc}; {_ALIAS_HINT}") from exc
    if isinstance(cls, type) and issubclass(cls, _base):
        return cls
    raise TypeError(f"it is not a subclass of {_base.__module__}.Message; {_ALIAS_HINT}")


@functools.cache
def _declarations() -> dict[str, tuple[EntryPoint, str] | None]:
    """Find the entry points of message classes and their packages, importing no class.

    None replaces an entry point that has turned out to be unusable.
    """
    from importlib import metadata  # Slow, and a program that only uses Message works without.

    found = [pair for package in metadata.distributions() for pair in _declared_by(package)]
    found.sort(key=lambda pair: _GROUPS.index(pair[0].group))
    # The first of a name counts, as on the import path.
    return {entry_point.name: (entry_point, package) for entry_point, package in found[::-1]}


def _declared_by(distribution: Distribution) -> list[tuple[EntryPoint, str]]:
    try:
        found = [point for point in distribution.entry_points if point.group in _GROUPS]
        return [(point, str(distribution.metadata["Name"])) for point in found]
    except Exception as exc:
        _log.error("the entry points of a package cannot be read, going on without: %r", exc)
        return []
