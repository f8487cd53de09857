"""The configuration: read from its file, merged with environment and defaults, and checked.

Load it in one thread (consume() does, before it starts others); then any may read it.
"""

from __future__ import annotations

import copy
import functools
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, Callable, TypedDict

from .config_checks import (
    DEFAULTS,
    check_bindings,
    check_config,
    check_queues,
    find_formatters,
    identity,
)
from .config_file import find_file, mark_file, read_file
from .environment import Given, merge, read_environment
from .exceptions import ConfigurationException, UnavailableException

__all__ = [
    "DEFAULTS",
    "BindingConfig",
    "LazyConfig",
    "QueueConfig",
    "check_bindings",
    "check_queues",
    "conf",
    "identity",
    "is_fedora_messaging",
]


class QueueConfig(TypedDict, total=False):
    """The settings of a queue, as under [queues]."""

    durable: bool
    auto_delete: bool
    exclusive: bool
    passive: bool
    arguments: Mapping[str, Any]
    consumer_arguments: Mapping[str, Any]


class BindingConfig(TypedDict, total=False):
    """A binding, as under [[bindings]]; exchange and routing_keys are required."""

    queue: str
    exchange: str
    routing_keys: Sequence[str]
    arguments: Mapping[str, Any]


def _merge_and_check(in_file: Mapping[str, Any], given: Given, title: str) -> dict[str, Any]:
    """Return the values of the file, those of the environment over them, and the defaults."""
    settings = copy.deepcopy({**in_file})
    if any(len(each.path) > 1 and each.path[0] == "log_config" for each in given.variables):
        # The only default that consists of parts: to change a level leaves its handlers.
        settings.setdefault("log_config", copy.deepcopy(DEFAULTS["log_config"]))
    origins = merge(given, settings)
    return check_config(settings, title, origins, given.problems)


#: Methods of dict that read the values. dict(conf), {**conf} and pickle go through these too.
_READING = (
    *("__getitem__", "__contains__", "__iter__", "__reversed__", "__len__", "__sizeof__"),
    *("__repr__", "get", "keys", "items", "values", "copy"),
)
#: Those that compare the values, or join them with those of another dict.
_COMBINING = (
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
    *("__or__", "__ror__", "__ior__"),
)
#: Those that change the values; a file read after them would undo the change.
_CHANGING = ("__setitem__", "__delitem__", "setdefault", "update", "pop", "popitem", "clear")


def _load_before(*names: str) -> Callable[[type[LazyConfig]], type[LazyConfig]]:
    """Return a decorator that makes LazyConfig load the file before these methods of dict run."""

    def decorate(cls: type[LazyConfig]) -> type[LazyConfig]:
        for name in names:
            setattr(cls, name, _loading(getattr(dict, name)))
        return cls

    return decorate


def _loading(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of LazyConfig that loads it if need be and then calls that of dict."""

    @functools.wraps(method)
    def load_first(self: LazyConfig, *args: Any, **kwargs: Any) -> Any:
        if not self.loaded:
            self.load_config()
        return method(self, *args, **kwargs)

    return load_first


# Not __init__ and __getattribute__: they run before there is anything to load.
@_load_before(*_READING, *_COMBINING, *_CHANGING)
class LazyConfig(dict[str, Any]):
    """A dict that reads the configuration file when it is first used in any way."""

    #: The file has been read and found good.
    loaded = False
    #: Path of that file, whether it exists or not.
    path = ""
    #: The same from the root: it stays right when the working directory changes.
    absolute_path = ""
    #: The values as they were after the load; a program may have changed its own since.
    as_loaded: Mapping[str, Any] = types.MappingProxyType({})
    #: The values that the file itself has.
    in_file: Mapping[str, Any] = types.MappingProxyType({})
    #: What the environment said at the load.
    given = Given((), {})
    #: Inode, size and time of the file when it was read.
    _mark: object = None

    def load_config(self, config_path: str | None = None) -> LazyConfig:
        """Read the file, whether or not it was read before.

        Args:
            config_path: The file; None takes $FMCONSUME_CONF, $FEDORA_MESSAGING_CONF or
                /etc/fedora-messaging/config.toml, which alone may be missing.

        Returns:
            This configuration.

        Raises:
            ConfigurationException: The file cannot be read, or it or the environment has
                problems; the message names them all. Its exit code is 1 where nothing but the
                file of a variable is not there.
        """
        path, note = find_file(config_path)
        # Taken before the file is read, so that is_outdated sees a change during the read.
        mark = mark_file(path)
        self._assign(path, os.path.abspath(path), read_file(path, note), mark)
        return self

    def reloaded(self) -> LazyConfig:
        """Return the configuration as file and environment have it now. Thread: any.

        A file that cannot be read again counts as it was.

        Raises:
            ConfigurationException: As `load_config` does.
        """
        mark = mark_file(self.absolute_path)
        content = self.in_file if mark is None else read_file(self.absolute_path, "")
        result = LazyConfig()
        result._assign(self.path, self.absolute_path, content, mark or self._mark)
        return result

    def _assign(
        self, path: str, absolute_path: str, content: Mapping[str, Any], mark: object
    ) -> None:
        in_file = {key.lower(): value for key, value in content.items()}
        given = read_environment(os.environ, DEFAULTS)
        sources = [path] * bool(in_file) + ["the environment"] * any(given)
        title = " with ".join(sources) or path
        try:
            config = copy.deepcopy(_merge_and_check(in_file, given, title))
        except RecursionError as exc:
            raise ConfigurationException(f"{title} cannot be used: it is nested too deep") from exc
        # Nothing is assigned before this line, so a failure leaves everything as it was.
        dict.update(self, copy.deepcopy(config))
        self.path, self.absolute_path, self.loaded = path, absolute_path, True
        self.as_loaded, self.in_file, self.given, self._mark = config, in_file, given, mark

    def source(self, key: str) -> str:
        """Name what has set a top-level key, or a key in it: a variable, or else the file."""
        names = (each.name for each in self.given.variables if each.path[0] == key)
        return next((f"${name}" for name in names), self.path)

    @property
    def is_outdated(self) -> bool:
        """Whether file or environment have changed since they were loaded. Thread: any."""
        mark = mark_file(self.absolute_path)
        is_changed = mark is not None and mark != self._mark
        return is_changed or read_environment(os.environ, DEFAULTS) != self.given

    def validate(self) -> None:
        """Check the present values, which a program may have changed since they were loaded.

        Raises:
            ConfigurationException: They have problems; the message names them all.
        """
        check_config(dict(self), "the configuration")

    def setup_logging(self) -> None:
        """Configure logging as log_config and log_format say.

        Raises:
            ConfigurationException: The logging module does not accept it.
            UnavailableException: A log file that it names cannot be opened.
        """
        import logging.config  # Large, and a program that embeds a consumer does without.

        config = copy.deepcopy(self["log_config"])
        if self["log_format"] == "json":
            for formatter in find_formatters(config):
                formatter["class"] = "fmconsume.service.journal.JsonFormatter"
        try:
            _add_loggers(config.setdefault("loggers", {}))
            logging.config.dictConfig(config)
        except Exception as exc:
            reason = f"{exc}: {exc.__cause__}" if exc.__cause__ else str(exc)
            # The folder of a log file may be mounted later.
            is_file = isinstance(exc.__cause__, OSError)
            error = UnavailableException if is_file else ConfigurationException
            raise error(f"log_config cannot be used: {reason}") from exc


def _add_loggers(loggers: dict[str, Any]) -> None:
    """Add the loggers of fmconsume and pika to those in log_config, unless it names them."""
    # disable_existing_loggers silences a logger that is not named.
    loggers.setdefault("fmconsume", dict(loggers.get("fedora_messaging", {})))
    # Programs log by this name, too.
    loggers.setdefault("fedora_messaging", dict(loggers["fmconsume"]))
    # pika logs each failed connection with a traceback; fmconsume does so in a line.
    loggers.setdefault("pika", {"level": "CRITICAL"})


#: The configuration of this process.
conf = LazyConfig()
#: fmconsume stands in for fedora-messaging. Set by compat.install, read by any thread.
is_fedora_messaging = False
