"""The configuration file: found, read, checked and merged over the defaults.

Load it in one thread (consume() does, before it starts others); then any may read it.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import stat
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

from .amqp_url import is_amqp_url
from .exceptions import ConfigurationException, UnavailableException
from .redaction import redact, redact_value
from .version import __version__

__all__ = ["DEFAULTS", "LazyConfig", "check_bindings", "check_queues", "conf"]

_DEFAULT_PATH = "/etc/fedora-messaging/config.toml"
_VARIABLES = ("FMCONSUME_CONF", "FEDORA_MESSAGING_CONF")

#: What tells fmconsume from the broker's other clients; its version is added on loading.
_IDENTITY = {"product": "fmconsume", "information": "https://pypi.org/project/fmconsume/"}

#: What holds where the file says nothing. etc/fmconsume.toml.example explains each key.
DEFAULTS: dict[str, Any] = {
    "amqp_url": "amqp://?connection_attempts=3&retry_delay=5",
    "passive_declares": False,
    "tls": {"ca_cert": None, "certfile": None, "keyfile": None},
    "client_properties": {"app": "Unknown", **_IDENTITY},
    "exchanges": {
        "amq.topic": {"type": "topic", "durable": True, "auto_delete": False, "arguments": {}}
    },
    "queues": {"": {"durable": False, "auto_delete": True, "exclusive": True, "arguments": {}}},
    "bindings": [{"queue": "", "exchange": "amq.topic", "routing_keys": ["#"]}],
    "qos": {"prefetch_count": 10, "prefetch_size": 0},
    "callback": None,
    "consumer_config": {},
    "body": "object",
    "workers": 1,
    "nack_delay": {"initial": 1.0, "max": 60.0},
    "remember": 20_000,
    "callback_timeout": None,
    "failed_messages": None,
    "failed_messages_limit": 1000,
    "monitoring": {},
    "publish_exchange": "amq.topic",
    "topic_prefix": "",
    "publish_priority": None,
    "log_config": {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "class": "fmconsume.service.journal.Formatter",
                "format": "[%(name)s %(levelname)s] %(message)s",
            }
        },
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "stream": "ext://sys.stderr",
            }
        },
        "loggers": {"fmconsume": {"level": "INFO"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
    },
}


class _Place(NamedTuple):
    """Where in the configuration a value stands, and the problems found so far."""

    path: str
    problems: list[str]

    def enter(self, key: object) -> _Place:
        """Go down to a key, shown quoted where TOML would have it quoted."""
        name = str(key) if re.fullmatch(r"[\w-]+", str(key)) else repr(key)
        return _Place(f"{self.path}.{name}" if self.path else name, self.problems)

    def report(
        self, found: str, expected: str, word: object = "", known: Iterable[str] = ()
    ) -> None:
        """Add a problem, with the known word that is nearest to the one found."""
        import difflib  # Nobody is to wait for it who makes no mistake.

        near = difflib.get_close_matches(str(word), map(str, known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        self.problems.append(f"{self.path}: found {found}, expected {expected}{hint}")


#: Reports what is wrong with a value at its place, and returns it as fmconsume uses it.
_Check = Callable[[Any, _Place], Any]

#: Stands for a key that has to be given and is not.
_MISSING = object()


def _describe(value: object) -> str:
    if value is _MISSING:
        return "nothing"
    if isinstance(value, str):
        return repr(redact_value(value))
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    name = {"dict": "table"}.get(type(value).__name__, type(value).__name__)
    return f"a {name}" if value else f"an empty {name}"


def _value(expected: str, fits: Callable[[Any], object], known: Iterable[str] = ()) -> _Check:
    def check(value: Any, place: _Place) -> Any:
        if not fits(value):
            place.report(_describe(value), expected, value, known)
        return value

    return check


def _choice(options: Iterable[str]) -> _Check:
    known = list(options)
    return _value(" or ".join(map(repr, known)), known.__contains__, known)


def _integer(low: int, high: float = float("inf")) -> _Check:
    limits = f"of {low} or more" if high == float("inf") else f"from {low} to {high}"
    return _value(f"an integer {limits}", lambda value: type(value) is int and low <= value <= high)


def _or(off: object, check: _Check) -> _Check:
    """Accept also the value that turns a setting off."""
    return lambda value, place: off if value == off else check(value, place)


def _in_turn(*checks: _Check) -> _Check:
    """Hand each check what the one before returned, until one reports a problem."""

    def check(value: Any, place: _Place) -> Any:
        before = len(place.problems)
        for each in checks:
            if len(place.problems) == before:
                value = each(value, place)
        return value

    return check


def _is_duration(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


_BOOLEAN = _value("true or false", lambda value: isinstance(value, bool))
_TEXT = _value("a string", lambda value: isinstance(value, str))
_DICT = _value("a table", lambda value: isinstance(value, dict))
_LIST = _value("a list", lambda value: isinstance(value, (list, tuple)))
_PATH = _in_turn(_or(None, _TEXT), lambda value, _: value or None)
_ARGUMENTS = _in_turn(_or(None, _DICT), lambda value, _: value or {})


def _each(item: _Check) -> _Check:
    """Check a table whose keys are names of the user's choosing."""

    def check(value: dict[str, Any], place: _Place) -> dict[str, Any]:
        return {_TEXT(key, place): item(each, place.enter(key)) for key, each in value.items()}

    return _in_turn(_DICT, check)


def _array(item: _Check) -> _Check:
    def check(value: Sequence[Any], place: _Place) -> list[Any]:
        return [
            item(each, place._replace(path=f"{place.path}[{index}]"))
            for index, each in enumerate(value)
        ]

    return _in_turn(_LIST, check)


def _table(checks: Mapping[str, _Check], defaults: Mapping[str, Any]) -> _Check:
    """Check a table with known keys and fill in its defaults."""

    def check(value: dict[str, Any], place: _Place) -> dict[str, Any]:
        for key in value:
            if key not in checks:
                place.enter(key).report("an unknown key", ", ".join(checks), key, checks)
        merged = {**defaults, **value}
        return {
            key: check(merged[key], place.enter(key))
            for key, check in checks.items()
            if key in merged
        }

    return _in_turn(_DICT, check)


def _check_url(value: Any, place: _Place) -> Any:
    if not is_amqp_url(value):
        found = redact(value) if isinstance(value, str) else value
        place.report(_describe(found), "amqp[s]://user:password@host:port/vhost?parameter=value")
    return value


def _check_urls(value: Any, place: _Place) -> Any:
    is_list = isinstance(value, (list, tuple)) and value
    return (_array(_check_url) if is_list else _check_url)(value, place)


def _is_callback(value: object) -> bool:
    module, colon, name = str(value).partition(":")
    return bool(colon) and all(map(str.isidentifier, f"{module}.{name}".split(".")))


def _identify(properties: dict[str, Any], _: _Place) -> dict[str, Any]:
    """Fill in the identity of fmconsume, whatever the file says."""
    import pika

    version = f"fmconsume-{__version__} with pika-{pika.__version__}"
    return {**DEFAULTS["client_properties"], **properties, **_IDENTITY, "version": version}


_ENTITY = {"durable": _BOOLEAN, "auto_delete": _BOOLEAN, "arguments": _ARGUMENTS}
_EXCHANGE = _table({"type": _TEXT, **_ENTITY}, DEFAULTS["exchanges"]["amq.topic"])
_QUEUE = _table(
    {**_ENTITY, "exclusive": _BOOLEAN, "passive": _BOOLEAN},
    {"durable": False, "auto_delete": False, "exclusive": False, "arguments": {}},
)
_QUEUES = _in_turn(_DICT, _value("the name of at least one queue", bool), _each(_QUEUE))


def _bindings(queues: object) -> _Check:
    """Check bindings to these queues; while those are malformed, any name will do."""
    binding = _table(
        {
            "queue": _choice(queues) if isinstance(queues, dict) else _TEXT,
            "exchange": _TEXT,
            "routing_keys": _array(_TEXT),
            "arguments": _ARGUMENTS,
        },
        {"queue": "", "exchange": _MISSING, "routing_keys": _MISSING},
    )
    return _in_turn(lambda value, _: [value] if isinstance(value, dict) else value, _array(binding))


_CHECKS: dict[str, _Check] = {
    "amqp_url": _check_urls,
    "passive_declares": _BOOLEAN,
    "tls": _in_turn(
        _table(dict.fromkeys(DEFAULTS["tls"], _PATH), DEFAULTS["tls"]),
        _value(
            "certfile and keyfile together, or neither",
            lambda tls: (tls["certfile"] is None) == (tls["keyfile"] is None),
        ),
    ),
    "client_properties": _in_turn(_DICT, _identify),
    "exchanges": _each(_EXCHANGE),
    "queues": _QUEUES,
    "qos": _table(
        {"prefetch_count": _integer(0, 65535), "prefetch_size": _integer(0)}, DEFAULTS["qos"]
    ),
    "callback": _or(None, _value('"package.module:object"', _is_callback)),
    "consumer_config": _DICT,
    "body": _choice(["object", "json", "bytes"]),
    "workers": _integer(1),
    "nack_delay": _in_turn(
        _table(
            dict.fromkeys(DEFAULTS["nack_delay"], _value("a number of seconds", _is_duration)),
            DEFAULTS["nack_delay"],
        ),
        _value("a max not below initial", lambda delay: delay["max"] >= delay["initial"]),
    ),
    "remember": _integer(0),
    "callback_timeout": _or(
        None, _value("a number of seconds above 0", lambda value: value and _is_duration(value))
    ),
    "failed_messages": _PATH,
    "failed_messages_limit": _integer(1),
    "monitoring": _or(
        {},
        _table(
            {"address": _TEXT, "port": _integer(1, 65535)},
            {"address": "localhost", "port": _MISSING},
        ),
    ),
    "publish_exchange": _TEXT,
    "topic_prefix": _TEXT,
    "publish_priority": _or(None, _integer(0, 255)),
    "log_config": _in_turn(
        _DICT, _value("version = 1 in it", lambda config: config.get("version") == 1)
    ),
}


def _check_config(value: dict[str, Any], place: _Place) -> Any:
    queues = value.get("queues", DEFAULTS["queues"])
    # The default binding is that of the default queue; other queues are bound by name.
    is_other = isinstance(queues, dict) and "" not in queues
    defaults = {**DEFAULTS, "bindings": []} if is_other else DEFAULTS
    return _table({**_CHECKS, "bindings": _bindings(queues)}, defaults)(value, place)


def _checked(check: _Check, value: object, path: str, title: str) -> Any:
    """Return what the check returns, or raise all that it reports under a title."""
    place = _Place(path, [])
    result = check(value, place)
    if place.problems:
        raise ConfigurationException("\n".join([f"{title} cannot be used:", *place.problems]))
    return result


def check_queues(queues: Any) -> dict[str, dict[str, Any]]:
    """Return a copy of the queues with their defaults filled in.

    Args:
        queues: Names to settings, as under [queues] in the file.

    Raises:
        ConfigurationException: Something is wrong with them; it says all that is.
    """
    checked: dict[str, dict[str, Any]] = _checked(_QUEUES, queues, "queues", "the queues")
    return copy.deepcopy(checked)


def check_bindings(bindings: Any, queues: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a copy of the bindings with their defaults filled in.

    Args:
        bindings: A list as under [[bindings]] in the file, or one of its members.
        queues: What may be bound.

    Raises:
        ConfigurationException: Something is wrong with them; it says all that is.
    """
    check = _bindings(queues)
    checked: list[dict[str, Any]] = _checked(check, bindings, "bindings", "the bindings")
    return copy.deepcopy(checked)


def _find(config_path: Optional[str]) -> tuple[str, Optional[str]]:
    """Return the path of the file, and a note on who named it; None if nobody did."""
    if config_path is not None:
        return config_path, ""
    for variable in _VARIABLES:
        if os.environ.get(variable):
            return os.environ[variable], f" (${variable})"
    return _DEFAULT_PATH, None


def _read(path: str, note: Optional[str]) -> dict[str, Any]:
    import tomli  # Only needed by those who have a file.

    try:
        with open(path, "rb") as file:
            return tomli.load(file)
    except OSError as exc:
        if note is None and isinstance(exc, FileNotFoundError):
            return {}
        reason = f"cannot read the configuration file {path}{note or ''}: {exc.strerror}"
        raise ConfigurationException(reason) from exc
    except (ValueError, RecursionError) as exc:  # Not TOML, not UTF-8, nested too deep.
        raise ConfigurationException(f"{path} is not valid TOML: {exc}") from exc


def _mark(path: str) -> object:
    """Give what changes with a file; None where there is none, or something that could block."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class LazyConfig(dict[str, Any]):
    """A dict that reads the configuration file when it is first used in any way."""

    #: The file has been read and found good.
    loaded = False
    #: Path of that file, whether it exists or not.
    path = ""
    #: The same from the root, so that it is found again from any working directory.
    absolute_path = ""
    #: What it said, checked; a program may have changed the values since.
    as_loaded: Mapping[str, Any] = types.MappingProxyType({})
    #: Inode, size and time of the file when it was read.
    _mark: object = None

    def load_config(self, config_path: Optional[str] = None) -> LazyConfig:
        """Read the file, again if need be.

        Args:
            config_path: Where it is; else $FMCONSUME_CONF, $FEDORA_MESSAGING_CONF or
                /etc/fedora-messaging/config.toml, which alone may be missing.

        Raises:
            ConfigurationException: It cannot be read, or has problems: all are named.
        """
        path, note = _find(config_path)
        # Before it is read, so that a change meanwhile shows.
        mark = _mark(path)
        settings = {key.lower(): value for key, value in _read(path, note).items()}
        try:
            config = copy.deepcopy(_checked(_check_config, settings, "", path))
        except RecursionError as exc:
            raise ConfigurationException(f"{path} cannot be used: it is nested too deep") from exc
        # Last and at once: a failure leaves everything as it was.
        dict.update(self, copy.deepcopy(config))
        self.path, self.loaded = path, True
        self.as_loaded, self._mark, self.absolute_path = config, mark, os.path.abspath(path)
        return self

    @property
    def is_outdated(self) -> bool:
        """Whether there is another file than was loaded. Thread: any."""
        mark = _mark(self.absolute_path)
        return mark is not None and mark != self._mark

    def validate(self) -> None:
        """Check the present values, which a program may have changed since they were loaded.

        Raises:
            ConfigurationException: Something is wrong with them; it says all that is.
        """
        _checked(_check_config, dict(self), "", "the configuration")

    def setup_logging(self) -> None:
        """Configure logging as log_config says.

        Raises:
            ConfigurationException: logging does not accept it.
            UnavailableException: A file that it names is not to be had.
        """
        import logging.config  # Large, and a program that embeds a consumer has its own.

        config = copy.deepcopy(self["log_config"])
        try:
            loggers = config.setdefault("loggers", {})
            # A logger that is not named here is silenced by disable_existing_loggers.
            loggers.setdefault("fmconsume", dict(loggers.get("fedora_messaging", {})))
            # pika logs each failed connection with a traceback; fmconsume does so in a line.
            loggers.setdefault("pika", {"level": "CRITICAL"})
            logging.config.dictConfig(config)
        except Exception as exc:
            reason = f"{exc}: {exc.__cause__}" if exc.__cause__ else str(exc)
            # The folder of a log file may be mounted later.
            is_file = isinstance(exc.__cause__, OSError)
            error = UnavailableException if is_file else ConfigurationException
            raise error(f"log_config cannot be used: {reason}") from exc


def _lazy(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def load_first(self: LazyConfig, *args: Any, **kwargs: Any) -> Any:
        if not self.loaded:
            self.load_config()
        return method(self, *args, **kwargs)

    return load_first


# All of dict's methods but the two that run before there is anything to load.
for _name, _method in vars(dict).items():
    if _name not in ("__init__", "__getattribute__") and isinstance(
        _method, (types.MethodDescriptorType, types.WrapperDescriptorType)
    ):
        setattr(LazyConfig, _name, _lazy(_method))

#: The configuration of this process.
conf = LazyConfig()
