"""JSON Schema for the message classes that bring a schema of their own; any thread may call."""

from __future__ import annotations

from typing import Any, NoReturn

from .exceptions import ConfigurationException, ValidationError
from .text import brief

__all__ = ["check"]

#: The last schema and its validator, by class and part. A class may build its schema anew for
#: each message: an equal one is not compiled again, and only one is kept.
_compiled: dict[tuple[type, str], tuple[Any, Any]] = {}


def check(owner: type, part: str, schema: Any, instance: Any) -> None:
    """Validate one part of a message against the schema that its class has for it.

    Args:
        owner: The message class.
        part: "body" or "headers".
        schema: JSON Schema; draft 4 where it has no "$schema".
        instance: The part of the message, of JSON types only.

    Raises:
        ValidationError: The part does not fit; names the class, the place and the reason.
        ConfigurationException: The schema is invalid, or the "schema" extra is not
            installed; the message is not to blame.
    """
    known = _compiled.get((owner, part))
    if known is None or (known[0] is not schema and known[0] != schema):
        known = _compiled[owner, part] = schema, _compile(owner, part, schema)
    try:
        known[1].validate(instance)
    except Exception as exc:  # The validator's own error, or another for a value not of JSON.
        place = "".join(map(_step, getattr(exc, "instance_path", ())))
        reason = getattr(exc, "message", exc)
        raise ValidationError(brief(f"{owner.__name__} {part}: ${place}: {reason}")) from exc


def _step(key: object) -> str:
    return f"[{key}]" if isinstance(key, int) else f".{key}"


def _compile(owner: type, part: str, schema: Any) -> Any:
    name = f"{owner.__module__}.{owner.__qualname__}"
    try:
        import jsonschema_rs
    except ImportError as exc:
        raise ConfigurationException(
            f"the {part} schema of {name} needs the 'schema' extra: pip install 'fmconsume[schema]'"
        ) from exc
    is_dated = isinstance(schema, dict) and "$schema" in schema
    make = jsonschema_rs.validator_for if is_dated else jsonschema_rs.Draft4Validator
    try:
        # fedora-messaging does not check "format": a message that passes there must pass here.
        return make(schema, retriever=_refuse, validate_formats=False)
    except Exception as exc:
        raise ConfigurationException(
            brief(f"the {part} schema of {name} is invalid: {getattr(exc, 'message', exc)}")
        ) from exc


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is not fetched: only references within the schema are followed")
