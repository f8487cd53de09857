"""JSON Schema for the message classes that bring a schema of their own; any thread may call.

jsonschema-rs validates, which is fast. What it cannot compile, as some regular expressions of
Python's, the package jsonschema validates where it is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Callable, NamedTuple, NoReturn

from .exceptions import ConfigurationException, ValidationError
from .log import get_logger, warn_once
from .text import brief

__all__ = ["check", "is_installed", "make_error", "tolerate"]

# The name that users see, and may have set a level for.
_log = get_logger("fmconsume.message")


class _Validator(NamedTuple):
    """A compiled schema.

    Attributes:
        validate: Raises if a value does not fit.
        faults: What it raises then; any other exception means that the schema cannot be used.
    """

    validate: Callable[[Any], object]
    faults: tuple[type[Exception], ...]


#: The last schema and its validator, or why there is none, by class and part. A class may build
#: its schema anew for each message: an equal one is not compiled again, and only one is kept.
_compiled: dict[tuple[type, str], tuple[Any, _Validator | str]] = {}


def is_installed() -> bool:
    """Tell whether there is a package that can validate."""
    return any(map(find_spec, ("jsonschema_rs", "jsonschema")))


@contextmanager
def tolerate(owner: type) -> Iterator[None]:
    """Log one warning for each message class where its schema cannot be used, in a `with` block."""
    try:
        yield
    except ConfigurationException as exc:
        name = f"{owner.__module__}.{owner.__qualname__}"
        warn_once(_log, "schema problem", name, "messages of class %r are not validated: %s", exc)


def check(owner: type, part: str, schema: Any, instance: Any) -> None:
    """Validate one part of a message against the schema that its class has for it.

    Args:
        owner: The message class.
        part: "body" or "headers".
        schema: JSON Schema; draft 2020-12 where it has no "$schema".
        instance: The part of the message, of JSON types only.

    Raises:
        ValidationError: The part does not fit; names the class, the place and the reason. In a
            program that uses the package jsonschema it is jsonschema.ValidationError too.
        ConfigurationException: The schema cannot be used, or nothing is installed that
            validates; the message is not to blame.
    """
    known = _compiled.get((owner, part))
    if known is None or (known[0] is not schema and known[0] != schema):
        known = _compiled[owner, part] = schema, _compile(schema)
    validator = known[1]
    if isinstance(validator, str):
        raise _unusable(owner, part, validator)
    try:
        validator.validate(instance)
    except validator.faults as exc:
        path: Any = getattr(exc, "instance_path", None) or getattr(exc, "absolute_path", ())
        reason = str(getattr(exc, "message", exc))
        text = brief(f"{owner.__name__} {part}: ${''.join(map(_step, path))}: {reason}")
        raise make_error(text, reason, path) from exc
    except Exception as exc:  # A reference that leads nowhere, or an expression that is none.
        raise _unusable(owner, part, f"is invalid: {exc}") from exc


def _unusable(owner: type, part: str, reason: str) -> ConfigurationException:
    return ConfigurationException(
        brief(f"the {part} schema of {owner.__module__}.{owner.__qualname__} {reason}")
    )


def make_error(text: str, reason: str, path: Iterable[str | int] = ()) -> ValidationError:
    """Make the error for a value that does not fit; jsonschema's too, where that is in use.

    Args:
        text: What str() gives.
        reason: The attribute `message` of jsonschema's.
        path: Keys and indexes that lead to the value.
    """
    # Only a program that has imported it can catch its error.
    theirs = getattr(sys.modules.get("jsonschema"), "ValidationError", None)
    if theirs is None:
        return ValidationError(text)
    error: ValidationError = _join(theirs)(reason, path=path)
    error.args = (text,)
    return error


def _join(theirs: type[Exception]) -> Any:
    """Make a class that is both our ValidationError and jsonschema's."""
    members = {"__str__": lambda self: self.args[0], "__module__": ValidationError.__module__}
    return type("ValidationError", (ValidationError, theirs), members)


def _step(key: object) -> str:
    return f"[{key}]" if isinstance(key, int) else f".{key}"


def _compile(schema: Any) -> _Validator | str:
    """Return a validator, or why there is none, as the end of a sentence about the schema."""
    flaw = ""
    for make in (_make_fast, _make_thorough):
        try:
            return make(schema)
        except ImportError:
            if make is _make_thorough and flaw:
                flaw += "; the package jsonschema, which is not installed, may know better"
        except Exception as exc:
            flaw = str(getattr(exc, "message", exc))
    if not flaw:
        return "needs the 'schema' extra: pip install 'fmconsume[schema]'"
    return f"is invalid: {flaw}"


def _make_fast(schema: Any) -> _Validator:
    import jsonschema_rs

    # fedora-messaging does not check "format": a message that passes there must pass here.
    made = jsonschema_rs.validator_for(schema, retriever=_refuse, validate_formats=False)
    # It raises errors of its own also for values that are not of JSON.
    return _Validator(made.validate, (Exception,))


def _make_thorough(schema: Any) -> _Validator:
    jsonschema = import_module("jsonschema")
    cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    cls.check_schema(schema)
    return _Validator(
        cls(schema, **_without_retrieval(schema)).validate, (jsonschema.ValidationError,)
    )


def _without_retrieval(schema: Any) -> dict[str, Any]:
    """Give the argument with which a validator of jsonschema's fetches no other document."""
    try:
        return {"registry": import_module("jsonschema_specifications").REGISTRY}
    except ImportError:  # A jsonschema before 4.18.
        schemes = dict.fromkeys(("http", "https", "ftp", "file"), _refuse)
        resolver = import_module("jsonschema").RefResolver
        return {"resolver": resolver.from_schema(schema, handlers=schemes)}


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is not fetched: only references within the schema are followed")
