"""The configuration's keys: the default of each, and a check that names every problem at once.

Pure: any thread may call.
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple

from .amqp_url import is_amqp_url
from .environment import RESERVED, Origins, Variable
from .exceptions import ConfigurationException, ExitCode
from .log import get_logger
from .redaction import redact, redact_value
from .text import printable
from .version import __version__

__all__ = [
    "DEFAULTS",
    "check_amqp_url",
    "check_bindings",
    "check_config",
    "check_queues",
    "find_formatters",
    "identity",
]

_log = get_logger("fmconsume.config")

#: Identifies fmconsume to the broker's administrators; loading adds the versions.
_IDENTITY = {"product": "fmconsume", "information": "https://pypi.org/project/fmconsume/"}

#: The class of formatters that `log_format` chooses for.
_FORMATTER = "fmconsume.service.journal.Formatter"

#: The values of all keys that the file leaves out. etc/fmconsume.toml.example explains each key.
DEFAULTS: dict[str, Any] = {
    "amqp_url": "amqp://?connection_attempts=3&retry_delay=5",
    "passive_declares": False,
    "as_fedora_messaging": False,
    "twisted_reactor": "refuse",
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
    "remember": 20_000,
    "state": None,
    "callback_timeout": None,
    "stop_timeout": None,
    "failures": {
        "on_exception": "halt",
        "nack_on": [],
        "drop_on": [],
        "max_attempts": 0,
        "delay": {"initial": 1.0, "max": 60.0},
        "keep_in": None,
        "keep": 1000,
    },
    "monitoring": {},
    "publish_exchange": "amq.topic",
    "topic_prefix": "",
    "publish_priority": None,
    "log_format": "text",
    "log_config": {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "class": _FORMATTER,
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
        "root": {"level": "INFO", "handlers": ["stderr"]},
    },
}


class _Place(NamedTuple):
    """Where in the configuration a value stands, and the problems found so far.

    Attributes:
        keys: The keys down to here.
        origins: What the environment has set.
        variable: What has set this value; None if that is the file, or the default.
    """

    path: str
    problems: list[str]
    keys: tuple[object, ...] = ()
    origins: Origins = types.MappingProxyType({})
    variable: Variable | None = None

    def enter(self, key: object) -> _Place:
        """Return the place of a key in the table here, quoted as TOML demands."""
        name = str(key) if re.fullmatch(r"[\w-]+", str(key)) else repr(key)
        keys = (*self.keys, key)
        return self._replace(
            path=f"{self.path}.{name}" if self.path else name,
            keys=keys,
            variable=self.origins.get(keys, self.variable),
        )

    def report(
        self, found: str, expected: str, word: object = "", known: Iterable[str] = ()
    ) -> None:
        """Add a problem to the list.

        Args:
            found: The value, described.
            expected: What could stand there instead.
            word: The value, if it could be a misspelling of a known word.
            known: Words to suggest the nearest of.
        """
        hint = _suggest(word, known)
        if self.variable is not None and self.variable.hidden:
            found, hint = self.variable.hidden, ""
        self._add(f"found {found}, expected {expected}{hint}")

    def report_key(self, key: object, known: Iterable[str], inner: Iterable[str]) -> None:
        """Add a key of the table here, which has no such key, to the list.

        Args:
            known: The keys that it has.
            inner: Keys in these, with theirs before a dot.
        """
        place, known = self.enter(key), list(known)
        is_variable = place.variable is not None and not self.keys
        words = [*known, *inner, *(RESERVED if is_variable else ())]
        hint = _suggest(key, words, place._spell)
        place._add(f"found an unknown key, expected {', '.join(known)}{hint}")

    def _spell(self, key: str) -> str:
        """Write what should stand here instead: a variable, if its name has this key."""
        variable, depth = self.variable, len(self.keys)
        if variable is None or variable.path[:depth] != self.keys:
            return repr(key)
        return variable.rename((*self.keys[:-1], *key.split("."), *variable.path[depth:]))

    def _add(self, text: str) -> None:
        variable = self.variable
        if variable is None:
            self.problems.append(f"{self.path}: {text}")
            return
        inner = "" if self.keys == variable.path else f"{self.path}: "
        self.problems.append(f"${printable(variable.name)}: {inner}{text}")


def _suggest(word: object, known: Iterable[str], spelled: Callable[[str], str] = repr) -> str:
    """Return a hint at the known word that is next to a word; nothing if none is near."""
    import difflib  # Slow to import, and a good configuration does not need it.

    near = difflib.get_close_matches(str(word), map(str, known), n=1)
    return f"; did you mean {spelled(near[0])}?" if near else ""


#: Reports the problems of a value to its place, and returns the value as fmconsume uses it.
_Check = Callable[[Any, _Place], Any]

#: The default of a key that has none: the user must give it.
_MISSING = object()


def _describe(value: object) -> str:
    """Show a value without a password, or its type where the value would be long."""
    if value is _MISSING:
        return "nothing"
    if isinstance(value, str):
        return repr(redact_value(value))
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    name = {"dict": "table"}.get(type(value).__name__, type(value).__name__)
    return f"a {name}" if value else f"an empty {name}"


# -- how checks are made ---------------------------------------------------------------


def _value(expected: str, fits: Callable[[Any], object], known: Iterable[str] = ()) -> _Check:
    """Accept what fits, and report anything else with a description of what is expected."""

    def check(value: Any, place: _Place) -> Any:
        if not fits(value):
            place.report(_describe(value), expected, value, known)
        return value

    return check


def _choice(options: Iterable[str]) -> _Check:
    """Accept one of these words."""
    known = list(options)
    return _value(" or ".join(map(repr, known)), known.__contains__, known)


def _integer(low: int, high: float = float("inf")) -> _Check:
    """Accept an integer within limits, both included."""
    limits = f"of {low} or more" if high == float("inf") else f"from {low} to {high}"
    return _value(f"an integer {limits}", lambda value: type(value) is int and low <= value <= high)


def _or(off: object, check: _Check) -> _Check:
    """Accept also `off`, the value that turns a setting off."""
    return lambda value, place: off if value == off else check(value, place)


def _in_turn(*checks: _Check) -> _Check:
    """Pass the value through one check after another, until one reports a problem."""

    def check(value: Any, place: _Place) -> Any:
        before = len(place.problems)
        for each in checks:
            if len(place.problems) == before:
                value = each(value, place)
        return value

    return check


def _is_duration(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


_DURATION = _value("a number of seconds above 0", lambda value: value and _is_duration(value))
_BOOLEAN = _value("true or false", lambda value: isinstance(value, bool))
_TEXT = _value("a string", lambda value: isinstance(value, str))
_DICT = _value("a table", lambda value: isinstance(value, dict))
_LIST = _value("a list", lambda value: isinstance(value, (list, tuple)))
#: An empty path, like none, becomes None.
_PATH = _in_turn(_or(None, _TEXT), lambda value, _: value or None)
_ARGUMENTS = _in_turn(_or(None, _DICT), lambda value, _: value or {})


def _each(item: _Check) -> _Check:
    """Accept a table whose keys are names that the user chooses, and check each item."""

    def check(value: dict[str, Any], place: _Place) -> dict[str, Any]:
        return {_TEXT(key, place): item(each, place.enter(key)) for key, each in value.items()}

    return _in_turn(_DICT, check)


def _array(item: _Check) -> _Check:
    """Accept a list, and check each item."""

    def check(value: Sequence[Any], place: _Place) -> list[Any]:
        return [
            item(each, place._replace(path=f"{place.path}[{index}]"))
            for index, each in enumerate(value)
        ]

    return _in_turn(_LIST, check)


def _list_inner(defaults: Mapping[str, Any]) -> Iterator[str]:
    """Give the keys of the tables in a table, which people may write outside of these."""
    for table, inner in defaults.items():
        if isinstance(inner, dict):
            yield from (f"{table}.{key}" for key in inner)


def _table(checks: Mapping[str, _Check], defaults: Mapping[str, Any]) -> _Check:
    """Accept a table with known keys, fill in the defaults and check each value."""

    def check(value: dict[str, Any], place: _Place) -> dict[str, Any]:
        for key in value:
            if key not in checks:
                place.report_key(key, checks, _list_inner(defaults))
        merged = {**defaults, **value}
        return {
            key: inner(merged[key], place.enter(key))
            for key, inner in checks.items()
            if key in merged
        }

    return _in_turn(_DICT, check)


# -- the check of each key -------------------------------------------------------------


def _check_url(value: Any, place: _Place) -> Any:
    """Accept an AMQP URL, and report any other value without the password in it."""
    if not is_amqp_url(value):
        found = redact(value) if isinstance(value, str) else value
        place.report(_describe(found), "amqp[s]://user:password@host:port/vhost?parameter=value")
    return value


def _check_urls(value: Any, place: _Place) -> Any:
    """Accept one URL, or a list of them that is not empty."""
    is_list = isinstance(value, (list, tuple)) and value
    return (_array(_check_url) if is_list else _check_url)(value, place)


def _is_dotted_name(value: object) -> bool:
    return isinstance(value, str) and all(map(str.isidentifier, value.split(".")))


def _is_callback(value: object) -> bool:
    """Tell whether a value reads "package.module:object"; nothing is imported."""
    module, colon, name = str(value).partition(":")
    return bool(colon) and all(map(str.isidentifier, f"{module}.{name}".split(".")))


def identity() -> dict[str, str]:
    """Return the client properties that identify fmconsume to the broker's administrators."""
    import pika

    return {**_IDENTITY, "version": f"fmconsume-{__version__} with pika-{pika.__version__}"}


def _identify(properties: dict[str, Any], _: _Place) -> dict[str, Any]:
    """Add what identifies fmconsume, in place of what the file says there."""
    ours = identity()
    for key in sorted(key for key in ours if properties.get(key, ours[key]) != ours[key]):
        _log.warning("client_properties.%s in the configuration is ignored, as it is ours", key)
    return {**DEFAULTS["client_properties"], **properties, **ours}


#: Settings that exchanges and queues share.
_ENTITY = {"durable": _BOOLEAN, "auto_delete": _BOOLEAN, "arguments": _ARGUMENTS}


def _refuse_stream(arguments: dict[str, Any], place: _Place) -> Any:
    """Report a stream: it keeps its messages whatever a consumer answers."""
    if arguments.get("x-queue-type") == "stream":
        expected = "'quorum' or 'classic', as a stream keeps its messages"
        place.enter("x-queue-type").report("'stream'", expected)
    return arguments


_EXCHANGE = _table({"type": _TEXT, **_ENTITY}, DEFAULTS["exchanges"]["amq.topic"])
_QUEUE = _table(
    {
        **_ENTITY,
        "arguments": _in_turn(_ARGUMENTS, _refuse_stream),
        "exclusive": _BOOLEAN,
        "passive": _BOOLEAN,
        "consumer_arguments": _ARGUMENTS,
    },
    {"durable": False, "auto_delete": False, "exclusive": False, "arguments": {}},
)
_QUEUES = _in_turn(_DICT, _value("the name of at least one queue", bool), _each(_QUEUE))


def _bindings(queues: object) -> _Check:
    """Accept bindings of these queues; if the queues are no table, bindings of any queue."""
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


#: All top-level keys but bindings, whose check depends on the queues.
_CLASSES = _array(_value('the name of an exception class, as "package.Error"', _is_dotted_name))
_FAILURES = _table(
    {
        "on_exception": _choice(["halt", "nack", "drop"]),
        "nack_on": _CLASSES,
        "drop_on": _CLASSES,
        "max_attempts": _integer(0),
        "delay": _in_turn(
            _table(
                dict.fromkeys(("initial", "max"), _value("a number of seconds", _is_duration)),
                DEFAULTS["failures"]["delay"],
            ),
            _value("a max not below initial", lambda delay: delay["max"] >= delay["initial"]),
        ),
        "keep_in": _PATH,
        "keep": _integer(1),
    },
    DEFAULTS["failures"],
)

_CHECKS: dict[str, _Check] = {
    "amqp_url": _check_urls,
    "passive_declares": _BOOLEAN,
    "as_fedora_messaging": _BOOLEAN,
    "twisted_reactor": _choice(["refuse", "ignore"]),
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
    "callback": _or(None, _or("", _value('"package.module:object"', _is_callback))),
    "consumer_config": _DICT,
    "body": _choice(["object", "json", "bytes"]),
    "workers": _integer(1),
    "remember": _integer(0),
    "state": _PATH,
    "callback_timeout": _or(None, _DURATION),
    "stop_timeout": _or(None, _DURATION),
    "failures": _FAILURES,
    "monitoring": _or(
        {},
        _table(
            {"address": _or(None, _TEXT), "port": _integer(1, 65535)},
            {"address": None, "port": _MISSING},
        ),
    ),
    "publish_exchange": _TEXT,
    "topic_prefix": _TEXT,
    "publish_priority": _or(None, _integer(0, 255)),
    "log_format": _choice(["text", "json"]),
    "log_config": _in_turn(
        _DICT,
        lambda config, _: {"version": 1, **config},
        _value("version = 1 in it", lambda config: config["version"] == 1),
    ),
}


# -- the configuration, and the arguments that stand in for parts of it -----------------


def check_config(
    settings: Mapping[str, Any],
    title: str,
    origins: Origins = types.MappingProxyType({}),
    problems: Mapping[str, ExitCode] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Return the settings of a whole configuration with their defaults filled in.

    Tables in it may be those of the settings or of DEFAULTS: copy them before any change.

    Args:
        settings: Top-level keys, in lower case, to values, as in the file.
        title: Names the configuration in the error.
        origins: What the environment has set.
        problems: Those that it has, each with the exit code for it.

    Raises:
        ConfigurationException: The settings have problems; its message names them all.
    """
    place = _Place("", list(problems), origins=origins)
    checked: dict[str, Any] = _check_settings(dict(settings), place)
    _raise_all(place.problems, title, problems)
    return checked


def check_amqp_url(url: Any) -> list[str]:
    """Return the URLs of brokers.

    Args:
        url: One or several, as amqp_url in the file.

    Raises:
        ConfigurationException: It has problems; its message names them all.
    """
    checked = _apply(_check_urls, url, "amqp_url", "the argument")
    return [checked] if isinstance(checked, str) else list(checked)


def check_queues(queues: Any) -> dict[str, dict[str, Any]]:
    """Return a copy of the queues with their defaults filled in.

    Args:
        queues: Names to settings, as under [queues] in the file.

    Raises:
        ConfigurationException: The queues have problems; its message names them all.
    """
    checked: dict[str, dict[str, Any]] = _apply(_QUEUES, queues, "queues", "the queues")
    return copy.deepcopy(checked)


def check_bindings(bindings: Any, queues: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a copy of the bindings with their defaults filled in.

    Args:
        bindings: A list as under [[bindings]] in the file, or one of its items.
        queues: The queues that may be bound, by name.

    Raises:
        ConfigurationException: The bindings have problems; its message names them all.
    """
    check = _bindings(queues)
    checked: list[dict[str, Any]] = _apply(check, bindings, "bindings", "the bindings")
    return copy.deepcopy(checked)


def _check_settings(value: dict[str, Any], place: _Place) -> Any:
    # Without queues the bindings may be for one that --queue-name brings: they are checked with it.
    queues = value.get("queues")
    # The default binding is for the default queue. It would not fit queues with other names.
    is_other = isinstance(queues, dict) and "" not in queues
    defaults = {**DEFAULTS, "bindings": []} if is_other else DEFAULTS
    checked = _table({**_CHECKS, "bindings": _bindings(queues)}, defaults)(value, place)
    if checked["log_format"] == "json" and not find_formatters(checked["log_config"]):
        place.enter("log_format").report(
            "'json'", f"a formatter of class {_FORMATTER} in log_config"
        )
    return checked


def find_formatters(log_config: Any) -> list[dict[str, Any]]:
    """Return the formatters in log_config that `log_format` is about, as they are there."""
    formatters = log_config.get("formatters") if isinstance(log_config, dict) else None
    found = formatters.values() if isinstance(formatters, dict) else ()
    return [each for each in found if isinstance(each, dict) and each.get("class") == _FORMATTER]


def _apply(check: _Check, value: object, path: str, title: str) -> Any:
    """Return the checked value, or raise all problems that the check reports, under a title."""
    place = _Place(path, [])
    result = check(value, place)
    _raise_all(place.problems, title)
    return result


def _raise_all(
    problems: list[str],
    title: str,
    exit_codes: Mapping[str, ExitCode] = types.MappingProxyType({}),
) -> None:
    """Raise the problems, if there are any, with the exit code of the gravest."""
    if problems:
        error = ConfigurationException("\n".join([f"{title} cannot be used:", *problems]))
        error.exit_code = max(exit_codes.get(each, ExitCode.USAGE) for each in problems)
        raise error
