"""Reads keys of the configuration from the environment: FMCONSUME_QOS__PREFETCH_COUNT and its like.

The name is the key in capitals, with two underscores where a table is entered. The value is TOML,
or else text. FMCONSUME_AMQP_URL_FILE names a file that holds the value. Pure but for these files:
any thread may call.
"""

from __future__ import annotations

import copy
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .exceptions import ExitCode
from .redaction import redact_value
from .text import printable

__all__ = [
    "AS_FEDORA_MESSAGING",
    "CONF",
    "RESERVED",
    "Given",
    "Origins",
    "Variable",
    "is_on",
    "merge",
    "read_environment",
]

_PREFIX = "FMCONSUME_"
#: Names the configuration file.
CONF = f"{_PREFIX}CONF"
#: Variables that are no keys, in the form of keys.
RESERVED = ("conf",)
#: A key whose values are freer than TOML's: it is older than the other variables.
AS_FEDORA_MESSAGING = f"{_PREFIX}AS_FEDORA_MESSAGING"
_NO = ("", "0", "false", "no")

_TABLE, _FILE = "__", "_FILE"
#: No secret is larger. Source: systemd.exec(5), LoadCredential=.
_MAX_BYTES = 1_000_000
#: Text that begins so was probably meant as TOML.
_OPENING = ("[", "{", '"', "'")

#: What Kubernetes and Docker add for a service "fmconsume" or "fmconsume-...", without the prefix.
_SERVICE = re.compile(
    r"""(\w+_)?SERVICE_(HOST|PORT(_\w+)?)=
    | (\w+_)?PORT=(tcp|udp|sctp)://
    | (\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?=""",
    re.VERBOSE,
)


class Variable(NamedTuple):
    """A key that the environment sets.

    Attributes:
        path: The key, and before it the tables that it is in.
        flaw: Why the text is not valid TOML, where it looks as if it should be.
        file: The file that holds the value; empty if the variable does.
    """

    name: str
    path: tuple[str, ...]
    value: Any
    flaw: str = ""
    file: str = ""

    def rename(self, path: Iterable[object]) -> str:
        """Return the name of a variable like this one for another key."""
        return f"${_PREFIX}{_TABLE.join(map(str, path)).upper()}{_FILE if self.file else ''}"

    @property
    def hidden(self) -> str:
        """Description of a value that may hold a secret; empty for one that may be shown."""
        if self.flaw:
            return f"text that is not valid TOML ({self.flaw})"
        return "the text in its file" if self.file else ""


class Given(NamedTuple):
    """What the environment says.

    Attributes:
        variables: Tables before the keys in them.
        problems: Each with the exit code for it: what is not there may come later.
    """

    variables: tuple[Variable, ...]
    problems: dict[str, ExitCode]


#: The variable that has set each table or key.
Origins = Mapping[tuple[object, ...], Variable]


class _Problem(Exception):
    """Raised when a variable has no value that can be used."""

    def __init__(self, text: str, exit_code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def is_on(text: str) -> bool:
    """Tell what a value of $FMCONSUME_AS_FEDORA_MESSAGING means."""
    return text.lower() not in _NO


# -- reading ---------------------------------------------------------------------------


def read_environment(environ: Mapping[str, str], keys: Mapping[str, Any]) -> Given:
    """Read the variables, and the files that they name.

    An empty variable counts as unset.

    Args:
        keys: The top-level keys of the configuration.
    """
    names: dict[tuple[str, ...], str] = {}
    variables, problems = [], {}
    for name, text in _select(environ, keys):
        try:
            path, is_file = _locate(name)
            if path in names:
                raise _Problem(f"found beside ${names[path]}, expected one of them")
            names[path] = name
            variables.append(_read(name, path, text, is_file))
        except _Problem as exc:
            problems[f"${printable(name)}: {exc}"] = exc.exit_code
    return Given(tuple(sorted(variables, key=lambda each: len(each.path))), problems)


def _select(environ: Mapping[str, str], keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the variables that set keys, in the order of their names."""
    for name, text in sorted(environ.items()):
        rest = name[len(_PREFIX) :]
        if name.startswith(_PREFIX) and name != CONF and text:
            is_key = rest.partition(_TABLE)[0].lower() in keys
            if is_key or not _SERVICE.match(f"{rest}={text}"):
                yield name, text


def _locate(name: str) -> tuple[tuple[str, ...], bool]:
    """Return the path of the key that a variable sets, and whether it names a file."""
    *tables, key = name[len(_PREFIX) :].split(_TABLE)
    is_file = key.endswith(_FILE)
    path = tuple(each.lower() for each in (*tables, key[: -len(_FILE)] if is_file else key))
    if "" in path:
        raise _Problem(f"found an empty key, expected {_PREFIX}KEY or {_PREFIX}TABLE__KEY")
    return path, is_file


def _read(name: str, path: tuple[str, ...], text: str, is_file: bool) -> Variable:
    if name == AS_FEDORA_MESSAGING:
        return Variable(name, path, is_on(text))
    if not is_file:
        return Variable(name, path, *_parse(text))
    content = _read_file(text)
    # A secret that reads like a number, or that is in quotes, is meant as it stands.
    is_toml = content.lstrip().startswith(("[", "{"))
    value, flaw = _parse(content) if is_toml else (content, "")
    return Variable(name, path, value, flaw, text)


def _parse(text: str) -> tuple[Any, str]:
    """Return the value that a text has in TOML, or the text; and why it is not valid TOML."""
    import tomli

    _check_unicode(text)
    try:
        # In an inline table: what follows the value, even a comment, is an error.
        found = tomli.loads(f"table = {{value = {text}}}")
    except (ValueError, RecursionError) as exc:
        flaw = str(exc).partition(" (at ")[0] if text.lstrip().startswith(_OPENING) else ""
        return text, flaw
    value = found["table"].get("value")
    is_alone = found == {"table": {"value": value}} and not text.rstrip().endswith(",")
    return (value if is_alone else text), ""


def _check_unicode(text: str) -> None:
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise _Problem("found bytes that are not UTF-8")


def _read_file(path: str) -> str:
    """Return the content of a file, without the line end that an editor leaves."""
    # What is no path may be the secret itself.
    is_path = path.startswith(("/", "./"))
    hidden = "the file (its path does not begin with /)"
    shown = printable(redact_value(path)) if is_path else hidden
    try:
        # Opening anything but a file could block, or do what the device does.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _Problem(f"{shown} is no regular file")
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        # What is not there may be mounted, or written, later.
        is_final = isinstance(exc, (PermissionError, ValueError))
        exit_code = ExitCode.USAGE if is_final else ExitCode.TEMPORARY
        reason = getattr(exc, "strerror", None) or str(exc)
        raise _Problem(f"cannot read {shown}: {reason}", exit_code) from None
    if len(content) > _MAX_BYTES:
        raise _Problem(f"{shown} has more than {_MAX_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise _Problem(f"{shown} is not UTF-8") from None
    if not text:
        raise _Problem(f"{shown} is empty", ExitCode.TEMPORARY)
    return text


# -- merging ---------------------------------------------------------------------------


def merge(given: Given, settings: dict[str, Any]) -> Origins:
    """Put what the environment says into the settings, and return which variable set what.

    Args:
        settings: Top-level keys, in lower case, to values, as in the file; changed.
    """
    origins: dict[tuple[object, ...], Variable] = {}
    for variable in given.variables:
        table = _open(variable, settings, origins)
        if table is not None:
            table[variable.path[-1]] = copy.deepcopy(variable.value)
            origins[variable.path] = variable
    return origins


def _open(
    variable: Variable, settings: dict[str, Any], origins: dict[tuple[object, ...], Variable]
) -> dict[str, Any] | None:
    """Return the table that a key is in, which is made where need be.

    None if another variable says that this is no table, which will be found wrong.
    """
    table = settings
    for depth, key in enumerate(variable.path[:-1], 1):
        inner = table.get(key)
        if not isinstance(inner, dict):
            if variable.path[:depth] in origins:
                return None
            inner = table[key] = {}
            origins[variable.path[:depth]] = variable
        table = inner
    return table
