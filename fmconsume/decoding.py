"""Turns a delivery into a message that is fit for a callback, or says why it cannot.

Any thread may call; workers do, for each delivery.
"""

from __future__ import annotations

import encodings
import encodings.aliases
import json
from typing import TYPE_CHECKING, Any, NoReturn

from . import config, schema
from .delivery import Delivery
from .exceptions import ConfigurationException, UndecodableError, ValidationError
from .headers import INFO, SCHEMA, SEVERITIES, SEVERITY, check_headers, to_text
from .log import get_logger, warn_once
from .message_classes import base_class, choose_class
from .text import brief

if TYPE_CHECKING:
    from pika.spec import BasicProperties

    from .message import Message

__all__ = ["check_body", "decode", "get_message", "parse_body"]

# The name that users see, and may have set a level for.
_log = get_logger("fmconsume.message")


def decode(delivery: Delivery, body_mode: str = "object", *, allow_nan: bool = False) -> Message:
    """Turn a delivery into a message that is fit for a callback.

    Args:
        delivery: As the broker delivered it.
        body_mode: "object" for messages as fedora-messaging defines them; "json" for
            any JSON value and "bytes" for an untouched body, with whatever headers.
        allow_nan: As for `parse_body`.

    Raises:
        UndecodableError: The body or the headers cannot be read; one line.
        ValidationError: The message is invalid; one line.
        ConfigurationException: The configuration cannot be loaded, which a message class needs.
    """
    try:
        body, severity = _read(delivery, body_mode, allow_nan)
    except (ConfigurationException, MemoryError):
        raise
    except ValidationError as exc:
        raise UndecodableError(*exc.args) from exc
    except Exception as exc:
        raise UndecodableError(brief(f"{type(exc).__name__}: {exc}")) from exc
    try:
        return _make(delivery, body, severity)
    except (ConfigurationException, ValidationError, MemoryError):
        raise
    except Exception as exc:
        raise ValidationError(brief(f"{type(exc).__name__}: {exc}")) from exc


def get_message(routing_key: str, properties: BasicProperties, body: bytes) -> Message:
    """Make a message of what a broker delivers, as tests of message packages do.

    Raises:
        ValidationError: As for `decode`.
    """
    delivery = Delivery(
        *(0, 0, "", routing_key, False, properties, body),
        message_id=properties.message_id,
        received=0.0,
    )
    message = decode(delivery, allow_nan=config.is_fedora_messaging)
    message.queue = None
    return message


def _read(delivery: Delivery, body_mode: str, allow_nan: bool) -> tuple[Any, int]:
    """Return the body and the severity."""
    properties = delivery.properties
    body: Any = delivery.body
    flaw = getattr(properties, "flaw", "")
    if flaw:
        where = f"routing key {delivery.routing_key!r}, {len(body)} bytes"
        raise UndecodableError(f"its properties cannot be read: {flaw} ({where})")
    if body_mode != "bytes":
        body = parse_body(body, properties.content_encoding, allow_nan=allow_nan)
    return body, _accept(delivery, body) if body_mode == "object" else _tolerate(properties)


def _make(delivery: Delivery, body: Any, severity: int) -> Message:
    cls = choose_class(delivery.properties.headers, body)  # type: ignore[arg-type]
    message = _construct(cls, delivery, body, severity)
    message.queue = delivery.queue
    message.redelivered = delivery.redelivered
    message.attempt = delivery.attempt
    message._republished = 0
    if body is None:
        message.body = None  # JSON's null. The constructor makes an empty object of it.
    if cls is not base_class():
        _check_class(message)
    return message


def _construct(cls: type[Message], delivery: Delivery, body: Any, severity: int) -> Message:
    topic = to_text(delivery.routing_key)
    try:
        return cls(body=body, topic=topic, properties=delivery.properties, severity=severity)
    except ConfigurationException:
        raise
    except Exception as exc:  # A subclass's constructor reads a body that is not yet validated.
        reason = f"{cls.__name__} cannot hold it: {type(exc).__name__}: {exc}"
        raise ValidationError(brief(reason)) from exc


def _check_class(message: Message) -> None:
    if message.deprecated:
        name = f"{type(message).__module__}.{type(message).__qualname__}"
        warn_once(_log, "deprecated", name, "messages of the deprecated class %r arrive")
    with schema.tolerate(type(message)):
        message._check_schemas()


# -- Headers ---------------------------------------------------------------------------


def _accept(delivery: Delivery, body: Any) -> int:
    """Check the rules of fedora-messaging for every message, and return the severity."""
    headers = delivery.properties.headers
    if headers is None:
        headers = delivery.properties.headers = {}
    check_headers(headers)
    check_body(body)
    # Without either it is no message of Fedora's, which only they expect who stand in for theirs.
    if (SEVERITY in headers) != (SCHEMA in headers) or (
        SEVERITY not in headers and config.is_fedora_messaging
    ):
        missing = (SCHEMA if SEVERITY in headers else SEVERITY) if headers else "headers"
        warn_once(
            *(_log, missing, str(delivery.routing_key)),
            f"a message with routing key %r came without {missing}: its publisher misbehaves",
        )
    severity: Any = headers.get(SEVERITY, INFO)
    return severity  # type: ignore[no-any-return]


def _tolerate(properties: BasicProperties) -> int:
    """Return a severity for a message whose headers may be anything."""
    if not isinstance(properties.headers, dict):
        properties.headers = {}
    severity: Any = properties.headers.get(SEVERITY)
    return severity if severity in SEVERITIES else INFO


# -- Bodies ----------------------------------------------------------------------------


def check_body(body: Any) -> None:
    """Check the one rule that holds for the body of every message.

    Raises:
        ValidationError: The body is not an object.
    """
    if not isinstance(body, dict):
        raise ValidationError(f"the body is a {type(body).__name__}, expected an object")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_read_json = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode
_read_json_of_python = json.JSONDecoder().raw_decode

# The codec registry caches every name that it is asked for, and publishers choose these names.
# Therefore it is asked for known names alone, without idna and punycode: they take quadratic time.
_ENCODINGS = {*encodings.aliases.aliases, *encodings.aliases.aliases.values(), "utf_8_sig"}


def parse_body(body: bytes, encoding: str | None, *, allow_nan: bool = False) -> Any:
    """Read the JSON value in a body.

    Args:
        body: As the broker delivered it.
        encoding: Content encoding of the message; UTF-8 if there is none.
        allow_nan: Take NaN and the infinities, which are not JSON, for numbers as json.dumps
            writes them.

    Raises:
        ValidationError: The encoding is unknown.
        LookupError: The encoding is not one for text.
        ValueError: The body is not in that encoding, or is not JSON.
        RecursionError: The value is nested too deep.
    """
    encoding = encoding or "utf-8"
    if encoding != "utf-8":
        # pika gives bytes where it finds no UTF-8, hence str().
        name = encodings.normalize_encoding(str(encoding)).lower()
        if name not in _ENCODINGS:
            raise ValidationError(f"unknown content encoding {encoding!r}")
    text = body.decode(encoding).strip(" \t\n\r")
    value, end = (_read_json_of_python if allow_nan else _read_json)(text)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value
