"""What a consumer gets and a publisher sends: the Message class, its subclasses, its formats.

Any thread may call; one Message belongs to the thread that holds it.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import encodings
import encodings.aliases
import functools
import json
import re
import reprlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Optional, Union

from . import config, schema
from .exceptions import ConfigurationException, ValidationError
from .log import get_logger
from .schema_utils import user_avatar_url
from .text import brief, describe, printable, printable_lines

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

    from pika.spec import BasicProperties

    from .delivery import Delivery

__all__ = [
    "DEBUG",
    "ERROR",
    "INFO",
    "SERIALIZED_MESSAGE_SCHEMA",
    "SEVERITIES",
    "WARNING",
    "Message",
    "decode",
    "dump_line",
    "dumps",
    "get_class",
    "get_name",
    "load_line",
    "load_message",
    "load_message_classes",
    "loads",
]

_log = get_logger(__name__)

#: Of interest to those who look for it.
DEBUG = 10
#: What happens every day; the default.
INFO = 20
#: What the people concerned should look at.
WARNING = 30
#: What somebody has to act on.
ERROR = 40
SEVERITIES = (DEBUG, INFO, WARNING, ERROR)

_SCHEMA = "fedora_messaging_schema"
_PACKAGE = "fedora_messaging_schema_package"
_SEVERITY = "fedora_messaging_severity"
_SENT_AT = "sent-at"
#: How often a message was published again by those who had received it.
_COPIES = "x-fmconsume-copies"

#: The headers by which a broker or a consumer may filter, and where their values are.
_FILTERS = {
    "user": "usernames",
    "group": "groups",
    "rpm": "packages",
    "container": "containers",
    "module": "modules",
    "flatpak": "flatpaks",
}


class Message:
    """A message: a JSON object with a topic and headers.

    Subclasses describe the messages of one application: they override the schemas,
    the severity, and the properties from summary on.

    Args:
        body: What the message says; nothing at all becomes an empty object.
        headers: Added to those that fedora-messaging defines.
        topic: Words joined by dots; the class's topic if empty.
        properties: Those of a received message. They come with their headers, so
            that the argument of that name does not count.
        severity: One of SEVERITIES; the class's severity if None.

    Attributes:
        queue: Name of the queue that it came from, if it came from one.
        redelivered: The broker has delivered it before; whether it was handled is open.

    Raises:
        TypeError: The class is not registered, so that no consumer would find it.
    """

    severity: int = INFO
    topic: str = ""
    #: There is a better class for these messages: receiving one logs a warning, once.
    deprecated: bool = False
    queue: Optional[str] = None
    redelivered: bool = False
    #: How often it has been published since it was received; None if it was not received.
    _republished: Optional[int] = None
    headers_schema: ClassVar[dict[str, Any]] = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "description": "The headers of any message",
        "type": "object",
        "properties": {
            _SEVERITY: {"type": "number", "enum": list(SEVERITIES)},
            _SCHEMA: {"type": "string"},
            _PACKAGE: {"type": "string"},
            _SENT_AT: {"type": "string"},
        },
    }
    body_schema: ClassVar[dict[str, Any]] = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "description": "The body of any message",
        "type": "object",
    }

    def __init__(
        self,
        body: Any = None,
        headers: Optional[dict[str, Any]] = None,
        topic: Optional[str] = None,
        properties: Optional[BasicProperties] = None,
        severity: Optional[int] = None,
    ) -> None:
        self.body = {} if body is None else body
        if topic:
            self.topic = topic
        if severity is not None:
            self.severity = severity
        self._properties = (
            self._build_properties(headers or {}) if properties is None else properties
        )

    def _build_properties(self, headers: dict[str, Any]) -> BasicProperties:
        from pika import BasicProperties  # Slow to import, and receiving does not need it.

        name = get_name(type(self))
        priority = config.conf["publish_priority"]
        package = _schema_name_to_package.get(name)
        now = datetime.datetime.now(datetime.timezone.utc)
        return BasicProperties(
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
            message_id=str(uuid.uuid4()),
            priority=priority,
            headers={
                **headers,
                _SCHEMA: name,
                **({_PACKAGE: package} if package else {}),
                _SENT_AT: now.isoformat(timespec="seconds"),
                _SEVERITY: self.severity,
                "priority": priority or 0,
                **self._filter_headers(),
            },
        )

    def _filter_headers(self) -> dict[str, Any]:
        headers: dict[str, Any] = {}
        for kind, attribute in _FILTERS.items():
            try:
                for item in getattr(self, attribute):
                    headers[f"fedora_messaging_{kind}_{item}"] = True
            except Exception as exc:  # A subclass's property, over a body not yet validated.
                _log.warning("%s.%s failed: %s", type(self).__name__, attribute, describe(exc))
        return headers

    @property
    def _headers(self) -> dict[str, Any]:
        headers: Any = self._properties.headers
        if headers is None:
            headers = self._properties.headers = {}
        return headers  # type: ignore[no-any-return]

    @_headers.setter
    def _headers(self, value: dict[str, Any]) -> None:
        self._properties.headers = value

    @property
    def headers(self) -> dict[str, Any]:
        """The headers, by name."""
        return self._headers

    @property
    def properties(self) -> BasicProperties:
        """The AMQP properties, as pika has them."""
        return self._properties

    @property
    def id(self) -> Optional[str]:
        """The message id, if the publisher gave it one."""
        message_id: Optional[str] = _text(self._properties.message_id)
        return message_id

    @id.setter
    def id(self, value: Optional[str]) -> None:
        self._properties.message_id = value

    @property
    def priority(self) -> int:
        """The priority in a queue that has priorities; a header repeats it."""
        return self._properties.priority or 0

    @priority.setter
    def priority(self, value: Optional[int]) -> None:
        self._properties.priority = self._headers["priority"] = value or 0

    @property
    def _encoded_routing_key(self) -> str:
        prefix = config.conf["topic_prefix"].rstrip(".")
        return f"{prefix}.{self.topic}" if prefix else self.topic

    @property
    def _encoded_body(self) -> bytes:
        with _only_json():
            return json.dumps(self.body, allow_nan=False).encode()

    def _outgoing_properties(self) -> BasicProperties:
        """Give the properties to publish with; each copy of a received message has its own.

        Otherwise a consumer that is given the copy might take it for the message itself,
        delivered again, which it has finished.
        """
        if self._republished is None:
            return self._properties
        self._republished += 1
        before = self._headers.get(_COPIES)
        known = before if isinstance(before, int) and 0 <= before < 2**31 else 0
        properties = copy.copy(self._properties)
        properties.headers = {**self._headers, _COPIES: known + self._republished}
        return properties

    def validate(self) -> None:
        """Check the message by the rules for all messages, then by its class's schemas.

        Raises:
            ValidationError: Something is wrong with the message.
            ConfigurationException: Something is wrong with a schema.
        """
        _check_headers(self._headers)
        _check_body(self.body)
        self._check_schemas()

    def _check_schemas(self) -> None:
        if self.headers_schema is not Message.headers_schema:
            headers = _plain(self._headers)
            headers.pop(_COPIES, None)  # Ours, and no matter of the application's schema.
            schema.check(type(self), "headers", self.headers_schema, headers)
        if self.body_schema is not Message.body_schema:
            schema.check(type(self), "body", self.body_schema, self.body)

    def __eq__(self, other: object) -> bool:
        """Compare class, topic, body and headers, but not when and how often it was sent."""
        if not isinstance(other, Message) or type(other) is not type(self):
            return NotImplemented
        return self._compared() == other._compared()

    # A message can be changed, and so can what makes it equal to another.
    __hash__ = None  # type: ignore[assignment]

    def _compared(self) -> tuple[Any, ...]:
        return self.topic, self.body, {**self._headers, _SENT_AT: None, _COPIES: None}

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(id={self.id!r}, topic={self.topic!r}, body={self.body!r})"

    def __str__(self) -> str:
        """Show all of the message to a person; for subclasses to override."""
        return printable_lines(
            f"Id: {printable(self.id)}\nTopic: {printable(self.topic)}\n"
            f"Headers: {_pretty(self._headers)}\nBody: {_pretty(self.body)}"
        )

    @property
    def summary(self) -> str:
        """One line for a person; for subclasses to override, like all that follow."""
        return self.topic

    @property
    def url(self) -> Optional[str]:
        """Where to read more about what happened."""
        return None

    @property
    def app_name(self) -> Optional[str]:
        """The application that sent the message."""
        return None

    @property
    def app_icon(self) -> Optional[str]:
        """Address of the application's icon."""
        return None

    @property
    def agent_name(self) -> Optional[str]:
        """The user who did it."""
        return None

    @property
    def agent_avatar(self) -> Optional[str]:
        """Address of a picture of the user who did it; Libravatar's by default."""
        return None if self.agent_name is None else user_avatar_url(self.agent_name)

    @property
    def usernames(self) -> list[str]:
        """The users concerned."""
        return []

    @property
    def groups(self) -> list[str]:
        """The groups concerned."""
        return []

    @property
    def packages(self) -> list[str]:
        """The RPM packages concerned."""
        return []

    @property
    def containers(self) -> list[str]:
        """The container images concerned."""
        return []

    @property
    def modules(self) -> list[str]:
        """The modules concerned."""
        return []

    @property
    def flatpaks(self) -> list[str]:
        """The flatpaks concerned."""
        return []


_GROUPS = ("fmconsume.messages", "fedora.messages")
_ALIAS_HINT = "if it is made for fedora-messaging, run with --as-fedora-messaging"

# Message is here from the start: fedora-messaging, if installed, declares its own.
_schema_name_to_class: dict[str, type[Message]] = {"base.message": Message}
_class_to_schema_name: dict[type[Message], str] = {Message: "base.message"}
_schema_name_to_package: dict[str, str] = {}


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
        raise TypeError(
            f"{cls.__module__}.{cls.__qualname__} is not a registered message class: declare it "
            f"as an entry point in the group {_GROUPS[0]!r} and install its package"
        ) from exc


def load_message_classes() -> None:
    """Import every message class that an installed package declares."""
    for name in _declarations().keys() - _schema_name_to_class.keys():
        _load_class(name)


@functools.cache
def _declarations() -> dict[str, Optional[tuple[EntryPoint, str]]]:
    """Find the entry points of message classes and their packages, importing none.

    One that turns out to be unusable is replaced by None.
    """
    from importlib import metadata  # Looks at every package; only to be done when needed.

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


def _find_class(name: str, package: object) -> type[Message]:
    cls = _schema_name_to_class.get(name) or _load_class(name)
    if cls is None and name not in _declarations():
        _warn_once(
            *("schema", name, "no class for message schema %r, using Message; install %s"),
            brief(repr(package)) if package else "the package that defines it",
        )
    return cls or Message


def _load_class(name: str) -> Optional[type[Message]]:
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
    _schema_name_to_package[name] = re.sub(r"[-_.]+", "_", package).lower()
    _schema_name_to_class[name], _class_to_schema_name[cls] = cls, name
    return cls


def _import_class(entry_point: EntryPoint) -> type[Message]:
    try:
        cls = entry_point.load()
    except ModuleNotFoundError as exc:
        if str(exc.name).partition(".")[0] != "fedora_messaging":
            raise
        raise ImportError(f"{exc}; {_ALIAS_HINT}") from exc
    if isinstance(cls, type) and issubclass(cls, Message):
        return cls
    raise TypeError(f"it is not a subclass of {Message.__module__}.Message; {_ALIAS_HINT}")


def decode(delivery: Delivery, body_mode: str = "object") -> Message:
    """Turn a delivery into a message that is fit for a callback.

    Args:
        delivery: As the broker delivered it.
        body_mode: "object" for messages as fedora-messaging defines them; "json" for
            any JSON value and "bytes" for an untouched body, with whatever headers.

    Raises:
        ValidationError: Decoding is impossible, or the message is invalid; one line.
        ConfigurationException: A message schema cannot be used, see fmconsume.schema.
    """
    try:
        return _decode(delivery, body_mode)
    except (ConfigurationException, ValidationError, MemoryError):
        raise
    except Exception as exc:
        raise ValidationError(brief(f"{type(exc).__name__}: {exc}")) from exc


def _decode(delivery: Delivery, body_mode: str) -> Message:
    properties = delivery.properties
    body: Any = delivery.body
    flaw = getattr(properties, "flaw", "")
    if flaw:
        where = f"routing key {delivery.routing_key!r}, {len(body)} bytes"
        raise ValidationError(f"its properties cannot be read: {flaw} ({where})")
    if body_mode != "bytes":
        body = _parse_body(body, properties.content_encoding)
    severity = _accept(delivery, body) if body_mode == "object" else _tolerate(properties)
    headers: Any = properties.headers
    cls = _choose_class(headers, body)
    message = _construct(cls, delivery, body, severity)
    message.queue = delivery.queue
    message.redelivered = delivery.redelivered
    message._republished = 0
    if body is None:
        message.body = None  # JSON's null, which to the constructor is no body.
    if cls is not Message:
        _check_class(message)
    return message


def _construct(cls: type[Message], delivery: Delivery, body: Any, severity: int) -> Message:
    topic = _text(delivery.routing_key)
    try:
        return cls(body=body, topic=topic, properties=delivery.properties, severity=severity)
    except ConfigurationException:
        raise
    except Exception as exc:  # A subclass's constructor, over a body not yet validated.
        reason = f"{cls.__name__} cannot hold it: {type(exc).__name__}: {exc}"
        raise ValidationError(brief(reason)) from exc


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_read_json = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode

# Asking the codec registry about any name that comes along would fill its cache for ever,
# and idna and punycode take quadratic time.
_ENCODINGS = {*encodings.aliases.aliases, *encodings.aliases.aliases.values(), "utf_8_sig"}


def _parse_body(body: bytes, encoding: Optional[str]) -> Any:
    encoding = encoding or "utf-8"
    if encoding != "utf-8":
        # pika gives bytes where it finds no UTF-8, hence str().
        name = encodings.normalize_encoding(str(encoding)).lower()
        if name not in _ENCODINGS:
            raise ValidationError(f"unknown content encoding {encoding!r}")
    text = body.decode(encoding).strip(" \t\n\r")
    value, end = _read_json(text)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _accept(delivery: Delivery, body: Any) -> int:
    """Check what fedora-messaging asks of every message, and return the severity."""
    headers = delivery.properties.headers
    if headers is None:
        headers = delivery.properties.headers = {}
    _check_headers(headers)
    _check_body(body)
    if _SEVERITY not in headers or _SCHEMA not in headers:
        missing = (_SCHEMA if _SEVERITY in headers else _SEVERITY) if headers else "headers"
        _warn_once(
            missing,
            str(delivery.routing_key),
            f"a message with routing key %r came without {missing}: its publisher misbehaves",
        )
    severity: Any = headers.get(_SEVERITY, INFO)
    return severity  # type: ignore[no-any-return]


def _tolerate(properties: BasicProperties) -> int:
    """Return the severity that any AMQP message may be taken to have."""
    if not isinstance(properties.headers, dict):
        properties.headers = {}
    severity: Any = properties.headers.get(_SEVERITY)
    return severity if severity in SEVERITIES else INFO


def _check_headers(headers: Any) -> None:
    if not isinstance(headers, dict):
        raise ValidationError(f"headers are a {type(headers).__name__}, expected a table")
    if headers.get(_SEVERITY, INFO) not in SEVERITIES:
        found = headers[_SEVERITY]
        raise ValidationError(brief(f"{_SEVERITY} is {found!r}, expected 10, 20, 30 or 40"))
    for name in (_SCHEMA, _PACKAGE, _SENT_AT):
        if not isinstance(headers.get(name, ""), str):
            raise ValidationError(brief(f"{name} is {headers[name]!r}, expected a string"))


def _check_body(body: Any) -> None:
    if not isinstance(body, dict):
        raise ValidationError(f"the body is a {type(body).__name__}, expected an object")


def _choose_class(headers: dict[str, Any], body: Any) -> type[Message]:
    name = headers.get(_SCHEMA)
    if not isinstance(name, str) or not isinstance(body, dict):
        return Message
    return _schema_name_to_class.get(name) or _find_class(name, headers.get(_PACKAGE))


def _check_class(message: Message) -> None:
    if message.deprecated:
        name = f"{type(message).__module__}.{type(message).__qualname__}"
        _warn_once("deprecated", name, "messages of the deprecated class %r arrive")
    message._check_schemas()


# At most so many warnings of a kind: publishers choose the names in them.
_WARNINGS = 1000

_warned: dict[str, set[str]] = {}


def _warn_once(kind: str, name: str, text: str, *args: object) -> None:
    """Log a warning about a name, which text shows by its first %r, unless done before."""
    seen = _warned.setdefault(kind, set())
    name = name[:255]
    if name in seen or len(seen) >= _WARNINGS:
        return
    seen.add(name)
    _log.warning(text, name, *args)
    if len(seen) == _WARNINGS:
        _log.warning("that was warning number %d of this kind, and the last", _WARNINGS)


#: What each line of dumps() is, for those who make such files by other means.
SERIALIZED_MESSAGE_SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "description": "One message in a file of JSON lines",
    "type": "object",
    "properties": {
        "topic": {"type": ["string"]},
        "headers": {"type": ["object"], "properties": Message.headers_schema["properties"]},
        "id": {"type": ["string", "null"]},
        "body": {"type": ["object"]},
        "queue": {"type": ["string", "null"]},
        "priority": {"type": ["integer", "null"]},
    },
    "required": ["topic", "body"],
}

_TYPES = {"string": str, "object": dict, "integer": int, "null": type(None)}


def dumps(messages: Union[Message, Iterable[Message]]) -> str:
    """Turn messages into text, one JSON object a line.

    Raises:
        ValidationError: A message is invalid, or is not JSON.
    """
    if isinstance(messages, Message):
        messages = [messages]
    lines = []
    for message in messages:
        message.validate()
        lines.append(dump_line(message))
    return "".join(lines)


def dump_line(message: Message) -> str:
    """Turn a message into a line of JSON, valid or not.

    Values that JSON does not have (AMQP has dates, decimals and bytes) become strings.

    Raises:
        ValidationError: The body is not JSON.
    """
    fields = {
        "topic": message.topic,
        "headers": message._headers,
        "id": message.id,
        "queue": message.queue,
        "priority": message.priority,
    }
    with _only_json():
        line = {**_plain(fields), "body": message.body}
        return json.dumps(line, ensure_ascii=False, sort_keys=True, default=_plain) + "\n"


def loads(serialized_messages: str) -> list[Message]:
    """Turn the text of dumps() into messages again; empty lines do not count.

    Raises:
        ValidationError: A line is not a message; says which and why.
    """
    # Not splitlines(), which also splits at characters that JSON may hold as they are.
    lines = enumerate(serialized_messages.split("\n"), 1)
    return [load_line(line, number) for number, line in lines if line.strip()]


def load_line(line: str, number: int) -> Message:
    """Turn a line of dumps() into a message again.

    Args:
        line: JSON text.
        number: What the error calls the line, from 1.

    Raises:
        ValidationError: The line is not a message; names the number.
    """
    try:
        return load_message(json.loads(line))
    except ConfigurationException:
        raise
    except Exception as exc:
        reason = exc if isinstance(exc, ValidationError) else f"{type(exc).__name__}: {exc}"
        raise ValidationError(brief(f"line {number}: {reason}")) from exc


def load_message(message_dict: Mapping[str, Any]) -> Message:
    """Make a message of what one line of dumps() holds.

    Raises:
        ValidationError: It is not as SERIALIZED_MESSAGE_SCHEMA says.
    """
    _check_serialized(message_dict)
    headers, body = dict(message_dict.get("headers", {})), message_dict["body"]
    cls = _choose_class(headers, body)
    topic, severity = message_dict["topic"], headers.get(_SEVERITY)
    message = cls(body=body, topic=topic, headers=headers, severity=severity)
    # What was sent counts, not what would be sent today.
    message._headers.update(headers)
    message.priority = message_dict.get("priority")
    message.queue = message_dict.get("queue")
    message.id = message_dict.get("id", message.id)
    return message


def _check_serialized(fields: Any) -> None:
    if not isinstance(fields, Mapping):
        raise ValidationError(f"found a {type(fields).__name__}, expected an object")
    for key in SERIALIZED_MESSAGE_SCHEMA["required"]:
        if key not in fields:
            raise ValidationError(f"{key} is missing")
    for key, rule in SERIALIZED_MESSAGE_SCHEMA["properties"].items():
        fits = tuple(_TYPES[name] for name in rule["type"])
        if key in fields and not isinstance(fields[key], fits):
            expected = " or ".join(rule["type"])
            raise ValidationError(brief(f"{key} is {fields[key]!r}, expected {expected}"))
    _check_headers(fields.get("headers", {}))


@contextlib.contextmanager
def _only_json() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValidationError(brief(f"not JSON: {exc}")) from exc


def _plain(value: Any) -> Any:
    """Reduce what an AMQP header may hold to what JSON has."""
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.isoformat() if isinstance(value, datetime.datetime) else _text(value)


def _text(value: Any) -> Any:
    """Read what pika leaves as bytes because it is not UTF-8."""
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "backslashreplace")
    return value if value is None or isinstance(value, str) else str(value)


def _pretty(value: Any) -> str:
    try:
        return json.dumps(_plain(value), ensure_ascii=False, indent=4, sort_keys=True)
    except Exception:  # A cycle, or nested too deep; it is to be shown nevertheless.
        return reprlib.repr(value)
