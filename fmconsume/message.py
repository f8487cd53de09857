"""The Message class, and the names that fedora_messaging.message has besides it.

Any thread may call; one Message belongs to the thread that holds it.
"""

from __future__ import annotations

import copy
import datetime
import json
import reprlib
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from . import config, schema
from .decoding import check_body, decode, get_message
from .exceptions import ValidationError
from .headers import (
    COPIES,
    DEBUG,
    ERROR,
    HEADERS_SCHEMA,
    INFO,
    PACKAGE,
    SCHEMA,
    SENT_AT,
    SEVERITIES,
    SEVERITY,
    WARNING,
    check_headers,
    simplify,
    to_text,
)
from .jsonlines import (
    SERIALIZED_MESSAGE_SCHEMA,
    dump_line,
    dumps,
    load_line,
    load_message,
    loads,
    only_json,
)
from .log import get_logger

# Tests of message packages look for the first two here, as they do in fedora-messaging.
from .message_classes import (
    _class_to_schema_name,  # noqa: F401
    _schema_name_to_class,  # noqa: F401
    _schema_name_to_package,
    get_class,
    get_name,
    load_message_classes,
    register_base,
)
from .schema_utils import user_avatar_url
from .text import describe, printable, printable_lines

if TYPE_CHECKING:
    from pika.spec import BasicProperties

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
    "get_message",
    "get_name",
    "load_line",
    "load_message",
    "load_message_classes",
    "loads",
]

_log = get_logger(__name__)

#: Kinds of headers to filter messages by, each with the attribute whose values they carry.
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
        body: A JSON object; None becomes an empty one.
        headers: Added to those that fedora-messaging defines.
        topic: Words joined by dots; the class's topic if empty.
        properties: The AMQP properties of a received message. They contain its headers,
            and the argument `headers` is ignored.
        severity: One of SEVERITIES; the class's severity if None.

    Attributes:
        queue: Name of the queue that it came from, if it came from one.
        redelivered: The broker has delivered it before, and it may have been processed.
        attempt: 1, and one more for each earlier run that ended in a Nack or an exception.

    Raises:
        TypeError: The class is not registered: no consumer would find it.
    """

    severity: int = INFO
    topic: str = ""
    #: Another class replaces this one: the first message of it that arrives logs a warning.
    deprecated: bool = False
    queue: str | None = None
    redelivered: bool = False
    attempt: int = 1
    #: How often it was published after it had been received; None if it was not received.
    _republished: int | None = None
    headers_schema: ClassVar[dict[str, Any]] = HEADERS_SCHEMA
    body_schema: ClassVar[dict[str, Any]] = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "description": "The body of any message",
        "type": "object",
    }

    def __init__(
        self,
        body: Any = None,
        headers: dict[str, Any] | None = None,
        topic: str | None = None,
        properties: BasicProperties | None = None,
        severity: int | None = None,
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
        from pika import BasicProperties  # Slow to import, and receiving works without.

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
                SCHEMA: name,
                **({PACKAGE: package} if package else {}),
                SENT_AT: now.isoformat(timespec="seconds"),
                SEVERITY: self.severity,
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
            except Exception as exc:  # A subclass's property reads a body not yet validated.
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
        """The AMQP properties, by the names that pika gives them."""
        return self._properties

    @property
    def id(self) -> str | None:
        """The message id, if the publisher gave it one."""
        message_id: str | None = to_text(self._properties.message_id)
        return message_id

    @id.setter
    def id(self, value: str | None) -> None:
        self._properties.message_id = value

    @property
    def priority(self) -> int:
        """The priority in a queue that has priorities; a header repeats it."""
        return self._properties.priority or 0

    @priority.setter
    def priority(self, value: int | None) -> None:
        self._properties.priority = self._headers["priority"] = value or 0

    @property
    def _encoded_routing_key(self) -> str:
        prefix = config.conf["topic_prefix"].rstrip(".")
        return f"{prefix}.{self.topic}" if prefix else self.topic

    @property
    def _encoded_body(self) -> bytes:
        with only_json():
            return json.dumps(self.body, allow_nan=config.is_fedora_messaging).encode()

    def _outgoing_properties(self, **more: str) -> BasicProperties:
        """Return the properties to publish with, with more headers.

        When a received message is published, each of its copies gets a number of its own.
        Without it, a consumer that receives a copy could mistake it for a redelivery of the
        message that it has finished, and not run it.
        """
        if self._republished is None and not more:
            return self._properties
        headers = {**self._headers, **more}
        if self._republished is not None:
            self._republished += 1
            before = self._headers.get(COPIES)
            known = before if isinstance(before, int) and 0 <= before < 2**31 else 0
            headers[COPIES] = known + self._republished
        properties = copy.copy(self._properties)
        properties.headers = headers
        return properties

    def validate(self) -> None:
        """Check the message by the rules for all messages, then by its class's schemas.

        Raises:
            ValidationError: Something is wrong with the message.
            ConfigurationException: A schema cannot be used, or nothing is installed that
                validates.
        """
        try:
            check_headers(self._headers)
            check_body(self.body)
        except ValidationError as exc:
            raise schema.make_error(str(exc), str(exc)) from exc
        self._check_schemas()

    def _check_schemas(self) -> None:
        if self.headers_schema is not Message.headers_schema:
            headers = simplify(self._headers)
            headers.pop(COPIES, None)  # Ours; an application's schema does not know it.
            schema.check(type(self), "headers", self.headers_schema, headers)
        if self.body_schema is not Message.body_schema:
            schema.check(type(self), "body", self.body_schema, self.body)

    def __eq__(self, other: object) -> bool:
        """Compare class, topic, body and headers, but not when or how often it was sent."""
        if not isinstance(other, Message) or type(other) is not type(self):
            return NotImplemented
        return self._compared() == other._compared()

    # A message can change, and its hash would change with it.
    __hash__ = None  # type: ignore[assignment]

    def _compared(self) -> tuple[Any, ...]:
        return self.topic, self.body, {**self._headers, SENT_AT: None, COPIES: None}

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(id={self.id!r}, topic={self.topic!r}, body={self.body!r})"

    def __str__(self) -> str:
        """Show the whole message to a person; subclasses may override this."""
        return printable_lines(
            f"Id: {printable(self.id)}\nTopic: {printable(self.topic)}\n"
            f"Headers: {_pretty(self._headers)}\nBody: {_pretty(self.body)}"
        )

    @property
    def summary(self) -> str:
        """One line for a person; subclasses may override this and the properties below."""
        return self.topic

    @property
    def url(self) -> str | None:
        """Where to read more about what happened."""
        return None

    @property
    def app_name(self) -> str | None:
        """The application that sent the message."""
        return None

    @property
    def app_icon(self) -> str | None:
        """Address of the application's icon."""
        return None

    @property
    def agent_name(self) -> str | None:
        """The user who caused the message."""
        return None

    @property
    def agent_avatar(self) -> str | None:
        """Address of a picture of that user; Libravatar's by default."""
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


register_base(Message)


def _pretty(value: Any) -> str:
    try:
        return json.dumps(simplify(value), ensure_ascii=False, indent=4, sort_keys=True)
    except Exception:  # The value contains itself, or is nested too deep. Show a part of it.
        return reprlib.repr(value)
