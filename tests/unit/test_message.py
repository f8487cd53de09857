"""Tests of messages: made, compared, shown, checked, and copied."""

from __future__ import annotations

import datetime
import json
import re
import uuid
from decimal import Decimal
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties

from fmconsume import message as module
from fmconsume import message_classes, schema_utils
from fmconsume.exceptions import ValidationError
from fmconsume.message import (
    DEBUG,
    ERROR,
    INFO,
    Message,
    decode,
    dump_line,
    dumps,
    get_message,
    loads,
)

from .messages import UPDATE, Install, any_headers, deliver

FILTERS = ["usernames", "groups", "packages", "containers", "modules", "flatpaks"]

pytestmark = pytest.mark.usefixtures("conf", "fresh_registry")


# -- Making ---------------------------------------------------------------------------


def test_message_properties() -> None:
    """A new message has the properties and headers that fedora-messaging gives it."""
    message = Message(body={"a": 1}, topic="a.topic", headers={"mine": "x"})
    properties = message.properties
    assert properties.content_type == "application/json"
    assert properties.content_encoding == "utf-8"
    assert properties.delivery_mode == 2
    assert properties.priority is None
    assert uuid.UUID(message.id).version == 4
    sent_at = message.headers.pop("sent-at")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", sent_at)
    age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(sent_at)
    assert age < datetime.timedelta(seconds=30)
    assert message.headers == {
        "mine": "x",
        "fedora_messaging_schema": "base.message",
        "fedora_messaging_severity": INFO,
        "priority": 0,
    }


def test_message_defaults() -> None:
    """A message of nothing is an empty object with the class's topic and severity."""
    message = Message()
    assert (message.body, message.topic, message.severity) == ({}, "", INFO)
    assert (message.queue, message.redelivered, message.priority) == (None, False, 0)


def test_message_keeps_arguments() -> None:
    """The caller's headers are copied, the body is the very object."""
    headers: dict[str, Any] = {}
    body: dict[str, Any] = {}
    assert Message(headers=headers, body=body).body is body
    assert headers == {}


def test_message_same_headers() -> None:
    """The names that existing consumers use give the same objects, and may be set."""
    message = Message()
    assert message._headers is message.headers is message._properties.headers
    assert message._properties is message.properties
    message._headers = {"a": 1}
    assert message.properties.headers == {"a": 1}
    message._properties = BasicProperties(message_id="x")
    assert message.id == "x"
    message.headers["kept"] = 1
    assert message.headers == {"kept": 1}


def test_message_subclass(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass gives its severity, its topic, its schema name and its package's name."""
    name = install(UPDATE, "update.v1 = {}:Update")
    message = __import__(name).Update(body={"id": 1})
    assert (message.topic, message.severity) == ("update", DEBUG)
    assert message.headers["fedora_messaging_schema"] == "update.v1"
    assert message.headers["fedora_messaging_schema_package"] == "update_messages"
    assert message.headers["fedora_messaging_severity"] == DEBUG


def test_message_filter_headers(install: Install) -> None:
    """Who and what a message is about becomes headers to filter by."""
    named_class = __import__(install(UPDATE, "named.v1 = {}:Named")).Named
    headers = named_class(body={"name": "joe"}).headers
    found = {key for key, value in headers.items() if value is True}
    assert found == {
        "fedora_messaging_user_joe",
        "fedora_messaging_user_admin",
        "fedora_messaging_rpm_kernel",
    }


def test_message_filter_headers_failing(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A property that fails over an invalid body costs its headers, not the message."""
    message = __import__(install(UPDATE, "named.v1 = {}:Named")).Named(body={})
    assert "fedora_messaging_rpm_kernel" in message.headers
    assert "Named.usernames failed: KeyError: 'name'" in caplog.text


def test_message_unregistered() -> None:
    """A class that no package declares cannot be sent."""

    class Unknown(Message):
        pass

    with pytest.raises(TypeError, match="Unknown is not a registered message class"):
        Unknown()


def test_get_message(conf: Any) -> None:
    """A message is made of what a broker delivers."""
    sent = Message({"n": 1}, topic="a.topic")
    message = get_message("a.topic", sent.properties, sent._encoded_body)
    assert message == sent
    assert (message.id, message.queue) == (sent.id, None)
    with pytest.raises(ValidationError):
        get_message("a.topic", sent.properties, b"[")


def test_message_priority(conf: dict[str, Any]) -> None:
    """The configured priority is used; another may be set, and the header follows."""
    conf["publish_priority"] = 3
    message = Message()
    assert (message.priority, message.properties.priority, message.headers["priority"]) == (3, 3, 3)
    message.priority = 5
    assert (message.priority, message.properties.priority, message.headers["priority"]) == (5, 5, 5)
    message.priority = None
    assert (message.priority, message.headers["priority"]) == (0, 0)


def test_message_id() -> None:
    """The id may be set, and be missing; one that is not UTF-8 is readable all the same."""
    message = Message()
    message.id = "other"
    assert message.properties.message_id == "other"
    assert decode(deliver(message_id=None)).id is None
    assert decode(deliver(message_id=b"\xff1")).id == r"\xff1"


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("", "a.topic"), ("org", "org.a.topic"), ("org.fedora.", "org.fedora.a.topic")],
)
def test_encoded_routing_key(prefix: str, expected: str, conf: dict[str, Any]) -> None:
    """The configured prefix goes before the topic, with one dot between."""
    conf["topic_prefix"] = prefix
    assert Message(topic="a.topic")._encoded_routing_key == expected


def test_encoded_body() -> None:
    """The body goes out as JSON in UTF-8."""
    assert json.loads(Message(body={"ž": [1]})._encoded_body) == {"ž": [1]}


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), b"x"])
def test_encoded_body_impossible(value: Any) -> None:
    """A body that is not JSON is invalid."""
    with pytest.raises(ValidationError, match="not JSON"):
        _ = Message(body={"a": value})._encoded_body


def test_notification_properties() -> None:
    """What subclasses override is there on each message."""
    message = Message(topic="a.topic")
    assert message.summary == "a.topic"
    for name in ("url", "app_name", "app_icon", "agent_name", "agent_avatar"):
        assert getattr(message, name) is None
    for name in FILTERS:
        assert getattr(message, name) == []


def test_agent_avatar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever did it has an avatar at Libravatar."""
    monkeypatch.setattr(Message, "agent_name", "joe")
    assert Message().agent_avatar == schema_utils.user_avatar_url("joe")


def test_libravatar_url() -> None:
    """An avatar's address has the hash of the owner, the size and the default."""
    digest = "b4c9a289323b21a01c3e940f150eb9b8c542587f1abfd8f0e1cc1ffc5e475514"
    url = f"https://seccdn.libravatar.org/avatar/{digest}"
    assert schema_utils.libravatar_url(email="user@example.com") == f"{url}?s=64&d=retro"
    assert (
        schema_utils.libravatar_url(email="user@example.com", openid="x", size=8, default="mm")
        == f"{url}?s=8&d=mm"
    )
    openid = "http://joe.id.fedoraproject.org/"
    assert schema_utils.user_avatar_url("joe", 8) == schema_utils.libravatar_url(
        openid=openid, size=8
    )


def test_libravatar_url_of_nobody() -> None:
    """An avatar has to be somebody's."""
    with pytest.raises(ValueError, match="needs an email or an openid"):
        schema_utils.libravatar_url()


# -- Comparing and showing ------------------------------------------------------------


def test_eq() -> None:
    """Messages of equal content are equal, whenever they were sent and by whatever id."""
    one, other = Message({"a": 1}, topic="t"), Message({"a": 1}, topic="t")
    other.headers["sent-at"] = "1999"
    assert one == other
    del other.headers["sent-at"]
    assert one == other


@pytest.mark.parametrize(
    "other",
    [
        Message({"a": 2}, topic="t"),
        Message({"a": 1}, topic="u"),
        Message({"a": 1}, topic="t", headers={"x": 1}),
        Message({"a": 1}, topic="t", severity=ERROR),
        {"a": 1},
    ],
)
def test_eq_different(other: object) -> None:
    """Another body, topic or header, or no message at all, is not equal."""
    assert Message({"a": 1}, topic="t") != other


def test_eq_subclass() -> None:
    """A message of a subclass is another message."""

    class Other(Message):
        pass

    properties = BasicProperties(headers={})
    assert Message(properties=properties) != Other(properties=properties)


def test_hash() -> None:
    """A message can be changed, and so is in no set."""
    with pytest.raises(TypeError, match="unhashable"):
        hash(Message())


def test_repr() -> None:
    """The short form shows class, id, topic and body."""
    message = decode(deliver(b'{"a": 1}'))
    assert repr(message) == "Message(id='m-1', topic='a.topic', body={'a': 1})"


def test_str() -> None:
    """The long form shows id, topic, headers and body, and leaves letters as they are."""
    message = decode(deliver('{"name": "Žluťoučký"}'.encode(), {"fedora_messaging_severity": 20}))
    assert str(message) == (
        "Id: m-1\nTopic: a.topic\n"
        'Headers: {\n    "fedora_messaging_severity": 20\n}\n'
        'Body: {\n    "name": "Žluťoučký"\n}'
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\\ud800", r"\ud800"), ("\\u009b2J", r"\x9b2J"), ("\\u001b[2J", r"\u001b[2J")],
)
def test_str_unprintable(text: str, shown: str) -> None:
    """Half characters and commands to a terminal are shown, not printed."""
    printed = str(decode(deliver(f'{{"a": "{text}"}}'.encode(), routing_key="a\x1b")))
    assert shown in printed
    assert r"Topic: a\x1b" in printed
    assert printed.encode()


@given(headers=any_headers(), body=st.binary(), key=st.text() | st.binary())
def test_str_any_headers(headers: dict[Any, Any], body: bytes, key: Any) -> None:
    """Whatever AMQP can carry can be shown, encoded and written."""
    message = decode(deliver(body, headers, key, message_id=key), "bytes")
    assert str(message).encode()
    assert repr(message)
    dump_line(message).encode("utf-8", "backslashreplace")


def test_str_deep_and_cyclic() -> None:
    """A body nested without end is shown as far as it goes."""
    body: dict[str, Any] = {"a": {}}
    for _ in range(100_000):
        body = {"a": body}
    assert "..." in str(Message(body))
    body["a"] = body
    assert "..." in str(Message(body))


# -- Checking -------------------------------------------------------------------------


def test_validate() -> None:
    """A message as the constructor makes it is valid."""
    Message({"a": 1}, topic="t").validate()


@pytest.mark.parametrize("severity", [0, 15, 50, True, "20", None, [20], {"a": 1}, b"20"])
def test_validate_severity(severity: Any) -> None:
    """Only the four severities are valid."""
    message = Message()
    message.headers["fedora_messaging_severity"] = severity
    with pytest.raises(ValidationError, match="expected 10, 20, 30 or 40"):
        message.validate()


@pytest.mark.parametrize("value", [None, 5, b"x", ["x"], {"x": 1}])
@pytest.mark.parametrize(
    "header", ["fedora_messaging_schema", "fedora_messaging_schema_package", "sent-at"]
)
def test_validate_text_headers(header: str, value: Any) -> None:
    """The schema, its package and the time of sending are strings."""
    message = Message()
    message.headers[header] = value
    with pytest.raises(ValidationError, match=f"{header} is .*, expected a string"):
        message.validate()


@pytest.mark.parametrize("body", [[], "text", 5, b"x"])
def test_validate_body(body: Any) -> None:
    """A body is an object."""
    with pytest.raises(ValidationError, match="expected an object"):
        Message(body).validate()


def test_validate_schema(install: Install) -> None:
    """A class's own body schema counts."""
    update = __import__(install(UPDATE, "update.v1 = {}:Update")).Update
    update({"id": 1}).validate()
    with pytest.raises(ValidationError, match=r"Update body: \$\.id: \"x\" is not of type"):
        update({"id": "x"}).validate()


def test_validate_headers_schema() -> None:
    """A class's own headers schema counts, also for headers of types that JSON lacks."""

    class Strict(Message):
        headers_schema: ClassVar[dict[str, Any]] = {"properties": {"x-death": {"type": "string"}}}

    headers: dict[str, Any] = {"x-death": datetime.datetime(2024, 6, 10), "d": Decimal(1)}
    message = Strict(properties=BasicProperties(headers=headers))
    message.validate()
    message.headers["x-death"] = 5
    with pytest.raises(ValidationError, match=r"Strict headers: \$\.x-death: 5"):
        message.validate()


def test_validate_schema_property() -> None:
    """A schema may be a property that looks at the message."""

    class Flexible(Message):
        @property
        def body_schema(self) -> dict[str, Any]:  # type: ignore[override]
            return {"required": [self.topic]}

    def flexible(topic: str) -> Flexible:
        return Flexible({"a": 1}, topic=topic, properties=BasicProperties())

    flexible("a").validate()
    with pytest.raises(ValidationError, match="required"):
        flexible("b").validate()


# -- Copies ---------------------------------------------------------------------------


def test_outgoing_properties_of_new() -> None:
    """A message that is new, or comes from a file, is published with its own properties."""
    message = Message(headers={"x-fmconsume-copies": 7})
    assert message._outgoing_properties() is message.properties
    (loaded,) = loads(dumps(message))
    assert loaded._outgoing_properties().headers["x-fmconsume-copies"] == 7


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, 1), (0, 1), (41, 42), ("many", 1), (-5, 1), (2**31, 1), (2**62, 1), ([1], 1)],
)
def test_outgoing_properties_of_received(before: Any, after: int) -> None:
    """Each copy of a received message has a number of its own; the message has it not."""
    headers = {} if before is None else {"x-fmconsume-copies": before}
    message = decode(deliver(b"{}", headers=dict(headers)))
    found = [message._outgoing_properties().headers for _ in range(3)]
    assert found == [{"x-fmconsume-copies": after + number} for number in range(3)]
    assert message.headers == headers


def test_equal_to_copy() -> None:
    """A copy is equal to what it was made of."""
    message = decode(deliver(b"{}", headers={"color": "red"}))
    copies = [
        decode(deliver(b"{}", headers=message._outgoing_properties().headers)) for _ in range(2)
    ]
    assert copies == [message, message]


def test_validate_copy_strict_schema() -> None:
    """A schema for headers that allows no other ones allows the mark of a copy."""

    class Strict(Message):
        headers_schema: ClassVar[dict[str, Any]] = {
            "type": "object",
            "properties": {"color": {}},
            "additionalProperties": False,
        }

    properties = BasicProperties(headers={"color": "red", "x-fmconsume-copies": 1})
    Strict(properties=properties).validate()
    properties.headers["other"] = 1
    with pytest.raises(ValidationError, match="other"):
        Strict(properties=properties).validate()
    assert properties.headers["x-fmconsume-copies"] == 1


# -- Names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["_schema_name_to_class", "_class_to_schema_name", "_schema_name_to_package"]
)
def test_registry_by_old_names(name: str) -> None:
    """Tests of message packages may change the registry where fedora-messaging has it."""
    assert getattr(module, name) is getattr(message_classes, name)
