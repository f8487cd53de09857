"""Tests of messages: made, decoded, registered, written and read."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, ClassVar, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties

from fmconsume import message as module
from fmconsume import schema, schema_utils
from fmconsume.delivery import Delivery
from fmconsume.exceptions import ConfigurationException, ValidationError
from fmconsume.message import (
    DEBUG,
    ERROR,
    INFO,
    SERIALIZED_MESSAGE_SCHEMA,
    SEVERITIES,
    WARNING,
    Message,
    decode,
    dumps,
    get_class,
    get_name,
    load_line,
    load_message,
    load_message_classes,
    loads,
)

FEDORA_HEADERS = {
    "fedora_messaging_schema": "base.message",
    "fedora_messaging_severity": WARNING,
    "sent-at": "2024-06-10T06:13:20+00:00",
}
MODES = ["object", "json", "bytes"]
NO_CHARSETS = ["zlib", "rot13", "hex", "mbcs", "idna", "punycode", "unicode_escape", "undefined"]
FILTERS = ["usernames", "groups", "packages", "containers", "modules", "flatpaks"]

#: Defines class Update for the tests that need a message class from another package.
UPDATE = """
from fmconsume.message import DEBUG, Message

class Update(Message):
    severity = DEBUG
    topic = "update"
    body_schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "object",
        "properties": {"id": {"type": "integer"}},
        "required": ["id"],
    }

    @property
    def summary(self):
        return "Update %d" % self.body["id"]

class Named(Message):
    @property
    def usernames(self):
        return [self.body["name"], "admin"]

    @property
    def packages(self):
        return ["kernel"]
"""

Install = Callable[..., str]


@pytest.fixture(autouse=True)
def conf(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the configuration of the machine."""
    conf = {"publish_priority": None, "topic_prefix": ""}
    monkeypatch.setattr(module, "config", SimpleNamespace(conf=conf))
    return conf


@pytest.fixture(autouse=True)
def _fresh_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test the registry and the memory of a new process."""
    monkeypatch.setattr(module, "_schema_name_to_class", {"base.message": Message})
    monkeypatch.setattr(module, "_class_to_schema_name", {Message: "base.message"})
    monkeypatch.setattr(module, "_schema_name_to_package", {})
    monkeypatch.setattr(module, "_warned", {})
    monkeypatch.setattr(schema, "_compiled", {})
    module._declarations.cache_clear()
    yield
    module._declarations.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package of one module, with its entry points; returns the module's name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(
        source: str,
        *entry_points: str,
        group: str = "fedora.messages",
        package: str = "Update.messages",
    ) -> str:
        name = f"messages_{uuid.uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{line.format(name)}\n" for line in entry_points]
        (info / "entry_points.txt").write_text(f"[{group}]\n{''.join(lines)}")
        return name

    return install


def deliver(
    body: bytes = b"{}",
    headers: Any = FEDORA_HEADERS,
    routing_key: Any = "a.topic",
    redelivered: bool = False,
    **properties: Any,
) -> Delivery:
    """Make a delivery as the broker would."""
    headers = dict(headers) if isinstance(headers, dict) else headers
    properties = {"content_encoding": "utf-8", "message_id": "m-1", **properties}
    made = BasicProperties(headers=headers, **properties)
    return Delivery(1, 7, "a queue", routing_key, redelivered, made, body, made.message_id, 0.0)


def named(schema_name: Any, **headers: Any) -> dict[str, Any]:
    """Make the headers of a message of this schema."""
    return {**FEDORA_HEADERS, "fedora_messaging_schema": schema_name, **headers}


# Making a message


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


# Comparing and showing


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


def _headers() -> st.SearchStrategy[dict[Any, Any]]:
    """Draw tables of any type that AMQP has, under odd and under meaningful names."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.sampled_from(SEVERITIES)
        | st.floats()
        | st.decimals(allow_nan=False)
        | st.datetimes()
        | st.binary()
        | st.text()
    )
    names = st.text() | st.binary() | st.sampled_from(list(FEDORA_HEADERS))
    values = st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(names, v), max_leaves=5)
    return st.dictionaries(names, values, max_size=5)


@given(headers=_headers(), body=st.binary(), key=st.text() | st.binary())
def test_str_any_headers(headers: dict[Any, Any], body: bytes, key: Any) -> None:
    """Whatever AMQP can carry can be shown, encoded and written."""
    message = decode(deliver(body, headers, key, message_id=key), "bytes")
    assert str(message).encode()
    assert repr(message)
    module.dump_line(message).encode("utf-8", "backslashreplace")


def test_str_deep_and_cyclic() -> None:
    """A body nested without end is shown as far as it goes."""
    body: dict[str, Any] = {"a": {}}
    for _ in range(100_000):
        body = {"a": body}
    assert "..." in str(Message(body))
    body["a"] = body
    assert "..." in str(Message(body))


# Checking


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


# Decoding


def test_decode() -> None:
    """A delivery becomes a message with all that the broker knows about it."""
    delivery = deliver(b' {"a": [1, "x"]}\n', redelivered=True, priority=4)
    message = decode(delivery)
    assert type(message) is Message
    assert message.body == {"a": [1, "x"]}
    assert (message.topic, message.id, message.queue) == ("a.topic", "m-1", "a queue")
    assert (message.severity, message.priority, message.redelivered) == (WARNING, 4, True)
    assert message.headers == FEDORA_HEADERS
    assert message.properties is delivery.properties
    message.validate()


@pytest.mark.parametrize("encoding", [None, "", "UTF-8", "utf8", "ascii", "ISO-8859-1", "utf-16"])
def test_decode_encoding(encoding: Optional[str]) -> None:
    """The body is read in its encoding, by default UTF-8."""
    body = '{"a": "x"}'.encode(encoding or "utf-8")
    assert decode(deliver(body, content_encoding=encoding)).body == {"a": "x"}


@pytest.mark.parametrize(
    "encoding",
    [*NO_CHARSETS, "gzip", "encodings.idna", "x" * 255, "a\0b", "\n", "..", b"\xff", 5],
)
def test_decode_unknown_encoding(encoding: Any) -> None:
    """An encoding that is none, or none for text, makes a message invalid."""
    with pytest.raises(ValidationError, match="encoding"):
        decode(deliver(content_encoding=encoding))


def test_decode_random_encodings() -> None:
    """Names that publishers invent do not pile up in the codec registry."""
    import encodings

    before = len(encodings._cache)
    for number in range(50):
        with pytest.raises(ValidationError, match="unknown content encoding"):
            decode(deliver(content_encoding=f"invented-{number}"))
    assert len(encodings._cache) == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b'{"a": 1} {}',
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a":' * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b"[]",
        b'"text"',
        b"null",
        b"5",
        b"{" + b"\n" * 100_000,
        b'{"' + b"x" * 1_000_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_decode_bad_body(body: bytes) -> None:
    """What is no JSON object is a ValidationError of one short line."""
    with pytest.raises(ValidationError) as raised:
        decode(deliver(body))
    assert str(raised.value) == raised.value.summary
    assert 0 < len(raised.value.summary) <= 300


@pytest.mark.skipif(not hasattr(sys, "get_int_max_str_digits"), reason="this Python has no limit")
def test_decode_endless_number() -> None:
    """A number longer than Python converts makes a message invalid."""
    with pytest.raises(ValidationError, match="ValueError: Exceeds the limit"):
        decode(deliver(b'{"a": ' + b"1" * 100_000 + b"}"))


def test_decode_without_headers(caplog: pytest.LogCaptureFixture) -> None:
    """A message without headers is one of severity INFO; the warning comes once a topic."""
    for _ in range(3):
        message = decode(deliver(headers=None))
    assert (message.headers, message.severity, type(message)) == ({}, INFO, Message)
    decode(deliver(headers=None, routing_key="other"))
    first, second = caplog.messages
    assert "'a.topic' came without headers" in first
    assert "'other' came without headers" in second


@pytest.mark.parametrize("missing", ["fedora_messaging_severity", "fedora_messaging_schema"])
def test_decode_missing_header(missing: str, caplog: pytest.LogCaptureFixture) -> None:
    """A message without a severity is of severity INFO; one without a schema is a Message."""
    headers = {key: value for key, value in FEDORA_HEADERS.items() if key != missing}
    for _ in range(3):
        message = decode(deliver(headers=headers))
    assert type(message) is Message
    assert message.severity == headers.get("fedora_messaging_severity", INFO)
    assert len(caplog.messages) == 1
    assert f"'a.topic' came without {missing}" in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        "text",
        [("a", 1)],
        5,
        named(5),
        named(["a"]),
        named(None),
        named("base.message", fedora_messaging_severity=11),
        named("base.message", fedora_messaging_severity="x" * 100_000),
        named("base.message", fedora_messaging_schema_package={"a": 1}),
        {b"sent-at": "x", "sent-at": b"x"},
    ],
    ids=lambda headers: repr(headers)[-30:],
)
def test_decode_bad_headers(headers: Any) -> None:
    """Headers of a wrong type or with a wrong value make a message invalid, in a short line."""
    with pytest.raises(ValidationError) as raised:
        decode(deliver(headers=headers))
    assert len(str(raised.value)) <= 300


def test_decode_odd_routing_key() -> None:
    """A routing key that is not UTF-8 is a string nevertheless."""
    assert decode(deliver(routing_key=b"a.\xff", headers=None)).topic == r"a.\xff"


@pytest.mark.parametrize("value", [None, [1], "text", 5, {"a": 1}])
def test_decode_json(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """In mode "json" any JSON value is a body, and no header is asked for."""
    message = decode(deliver(json.dumps(value).encode(), headers=None), "json")
    assert (message.body, message.headers, message.severity) == (value, {}, INFO)
    assert caplog.messages == []


@pytest.mark.parametrize("body", [b"", b"not JSON", b"\xff", b"{"])
def test_decode_json_bad_body(body: bytes) -> None:
    """In mode "json" a body that is not JSON is invalid all the same."""
    with pytest.raises(ValidationError):
        decode(deliver(body, headers=None), "json")


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\x00"])
def test_decode_bytes(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """In mode "bytes" the body is untouched, whatever its encoding is said to be."""
    message = decode(deliver(body, headers=None, content_encoding="gzip"), "bytes")
    assert message.body == body
    assert caplog.messages == []


@pytest.mark.parametrize("mode", ["json", "bytes"])
@pytest.mark.parametrize("severity", [0, "x", None, [20], True])
def test_decode_foreign_severity(mode: str, severity: Any) -> None:
    """In the other modes a severity that fedora-messaging does not know is INFO."""
    headers = {"fedora_messaging_severity": severity, "fedora_messaging_schema": 5}
    assert decode(deliver(headers=headers), mode).severity == INFO
    assert decode(deliver(headers="text"), mode).headers == {}


def test_decode_json_class(install: Install) -> None:
    """In mode "json" an object is still of the class that it names; nothing else is."""
    install(UPDATE, "update.v1 = {}:Update")
    assert decode(deliver(b'{"id": 3}', named("update.v1")), "json").summary == "Update 3"
    assert type(decode(deliver(b"[1]", named("update.v1")), "json")) is Message


@given(
    body=st.binary() | st.text().map(str.encode) | st.just(b"{}"),
    headers=st.none() | _headers() | st.text() | st.lists(st.integers()),
    encoding=st.none()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(sorted(module._ENCODINGS)),
    key=st.text() | st.binary(),
    mode=st.sampled_from(MODES),
)
def test_decode_anything(body: bytes, headers: Any, encoding: Any, key: Any, mode: str) -> None:
    """Whatever arrives is a message or a ValidationError, and in mode "bytes" a message."""
    with contextlib.suppress(ValidationError):
        message = decode(deliver(body, headers, key, content_encoding=encoding), mode)
        assert message.severity in SEVERITIES
        assert isinstance(message.topic, str)
        assert isinstance(message.headers, dict)
        assert mode != "object" or isinstance(message.body, dict)
        return
    assert mode != "bytes"


def test_decode_white_space() -> None:
    """White space around JSON is part of JSON."""
    assert decode(deliver(b' \t{"a": 1}\r\n')).body == {"a": 1}


def test_decode_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process out of memory does not take the message for invalid."""

    def fail(text: str) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "_read_json", fail)
    with pytest.raises(MemoryError):
        decode(deliver())


def test_warnings_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A publisher that invents names can neither fill the log nor the memory."""
    for number in range(1200):
        name = f"{number}-{'x' * 10_000}"
        decode(deliver(headers=named(name, fedora_messaging_schema_package=name)))
    assert len(caplog.messages) == 1001
    assert "number 1000 of this kind, and the last" in caplog.messages[-1]
    assert max(map(len, caplog.messages)) < 1000
    assert max(map(len, module._warned["schema"])) < 300


# Message classes


def test_decode_class(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A message is of the class that its header names, checked by its schema."""
    name = install(UPDATE, "update.v1 = {}:Update")
    message = decode(deliver(b'{"id": 3}', named("update.v1")))
    assert type(message) is sys.modules[name].Update
    assert (message.summary, message.topic, message.severity) == ("Update 3", "a.topic", WARNING)
    with pytest.raises(ValidationError, match=r"Update body: \$: \"id\" is a required property"):
        decode(deliver(b"{}", named("update.v1")))
    assert caplog.messages == []


def test_decode_imports_only_what_is_named(install: Install) -> None:
    """Only the class that a message names is imported, and only then."""
    used = install(UPDATE, "used.v1 = {}:Update")
    unused = install(UPDATE, "unused.v1 = {}:Update")
    decode(deliver())
    assert used not in sys.modules
    decode(deliver(b'{"id": 3}', named("used.v1")))
    assert used in sys.modules
    assert unused not in sys.modules


def test_decode_looks_once(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed packages are looked at once, and a class is loaded once."""
    name = install("loaded = []\n" + UPDATE, "update.v1 = {}:Update")
    decode(deliver(b'{"id": 3}', named("update.v1")))
    monkeypatch.setattr("importlib.metadata.distributions", None)
    monkeypatch.setitem(sys.modules, name, None)
    for schema_name in ("update.v1", "missing.v1", "missing.v2"):
        decode(deliver(b'{"id": 3}', named(schema_name)))


def test_decode_missing_class(caplog: pytest.LogCaptureFixture) -> None:
    """A message of a class that is not installed is a Message; one warning says what to do."""
    headers = named("bodhi.v1", fedora_messaging_schema_package="bodhi_messages")
    for _ in range(3):
        assert type(decode(deliver(headers=headers))) is Message
    (warning,) = caplog.messages
    assert "'bodhi.v1'" in warning
    assert "install 'bodhi_messages'" in warning
    assert type(decode(deliver(headers=named("other.v1")))) is Message
    assert "install the package that defines it" in caplog.messages[1]


@pytest.mark.parametrize("name", ["", "\0", "..", "x" * 1_000_000, "%s", "\ud800"])
def test_decode_hostile_name(name: str) -> None:
    """A schema name of any content is merely unknown."""
    assert type(decode(deliver(headers=named(name)))) is Message


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import missing_module", "No module named 'missing_module'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("", "has no attribute 'Update'"),
        ("Update = 5", "not a subclass of fmconsume.message.Message; if it is made for"),
        ("class Update: pass", "run with --as-fedora-messaging"),
        ("import fedora_messaging.message", "run with --as-fedora-messaging"),
    ],
)
def test_decode_broken_class(
    source: str,
    reason: str,
    install: Install,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A class that cannot be used is one error in the log and harms no other."""
    if "fedora" in source:
        source = "raise ModuleNotFoundError(\"No\", name='fedora_messaging.message')"
    install(source, "broken.v1 = {}:Update", package="broken")
    install(UPDATE, "update.v1 = {}:Update")
    for _ in range(3):
        assert type(decode(deliver(headers=named("broken.v1")))) is Message
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "broken.v1 = messages_" in record.message
    assert "of package broken " in record.message
    assert reason in record.message
    assert decode(deliver(b'{"id": 3}', named("update.v1"))).summary == "Update 3"


def test_decode_broken_package(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A package whose entry points cannot be read harms no other."""
    broken = install(UPDATE, "broken.v1 = {}:Update")
    (tmp_path / f"{broken}-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff")
    install(UPDATE, "update.v1 = {}:Update")
    assert decode(deliver(b'{"id": 3}', named("update.v1"))).summary == "Update 3"
    assert "the entry points of a package cannot be read" in caplog.text


def test_decode_failing_constructor(install: Install) -> None:
    """A constructor that fails over a body makes the message invalid, and is named."""
    source = """
from fmconsume.message import Message
class Tagged(Message):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.priority = len(self.body["tag"])
"""
    install(source, "tagged.v1 = {}:Tagged")
    message = decode(deliver(b'{"tag": "f40"}', named("tagged.v1")))
    assert (message.priority, message.headers["priority"]) == (3, 3)
    with pytest.raises(ValidationError, match="Tagged cannot hold it: TypeError"):
        decode(deliver(b'{"tag": 5}', named("tagged.v1")))


def test_constructor_without_configuration(install: Install) -> None:
    """A constructor that fails for the configuration's sake does not make the message invalid."""
    source = """
from fmconsume.exceptions import ConfigurationException
from fmconsume.message import Message
class Bound(Message):
    def __init__(self, **kwargs):
        raise ConfigurationException("no file")
"""
    install(source, "bound.v1 = {}:Bound")
    with pytest.raises(ConfigurationException, match="no file"):
        decode(deliver(headers=named("bound.v1")))
    with pytest.raises(ConfigurationException, match="no file"):
        load_message({"topic": "t", "body": {}, "headers": named("bound.v1")})
    with pytest.raises(ConfigurationException, match="no file"):
        loads(json.dumps({"topic": "t", "body": {}, "headers": named("bound.v1")}))


def test_decode_positional_constructor(install: Install) -> None:
    """A constructor may pass its arguments on by position."""
    source = """
from fmconsume.message import Message
class Old(Message):
    def __init__(self, body=None, headers=None, topic=None, properties=None, severity=None):
        super().__init__(body, headers, topic, properties, severity)
"""
    install(source, "old.v1 = {}:Old")
    message = decode(deliver(b'{"a": 1}', named("old.v1")))
    assert (message.body, message.topic, message.id) == ({"a": 1}, "a.topic", "m-1")


def test_decode_without_extra(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, a class with a schema stops the consumer and loses no message."""
    install(UPDATE, "update.v1 = {}:Update", "named.v1 = {}:Named")
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    with pytest.raises(ConfigurationException, match="Update needs the 'schema' extra"):
        decode(deliver(b'{"id": 3}', named("update.v1")))
    assert decode(deliver(headers=named("named.v1"))).packages == ["kernel"]


def test_decode_invalid_schema(install: Install) -> None:
    """A class with an invalid schema stops the consumer and loses no message."""
    source = UPDATE.replace('"integer"', '"nonsense"')
    install(source, "update.v1 = {}:Update")
    with pytest.raises(ConfigurationException, match=r"body schema of .*Update is invalid"):
        decode(deliver(b'{"id": 3}', named("update.v1")))


def test_decode_deprecated(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A deprecated class is one warning."""
    install(UPDATE + "    deprecated = True\n", "named.v1 = {}:Named")
    for _ in range(3):
        decode(deliver(headers=named("named.v1")))
    (warning,) = caplog.messages
    assert re.search(r"deprecated class 'messages_\w+\.Named'", warning)


def test_decode_concurrently(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """Workers that meet a class at the same time get the same one."""
    install("import time; time.sleep(0.1)\n" + UPDATE, "update.v1 = {}:Update")
    start = threading.Barrier(4)
    classes = []

    def work() -> None:
        start.wait()
        classes.append(type(decode(deliver(b'{"id": 3}', named("update.v1")))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(classes) == 4
    assert len(set(classes)) == 1
    assert caplog.messages == []


def test_get_class(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A name gives its class; an unknown one gives Message and a warning."""
    name = install(UPDATE, "update.v1 = {}:Update")
    assert get_class("update.v1") is sys.modules[name].Update
    assert get_class("base.message") is Message
    assert get_class("unknown.v1") is Message
    assert len(caplog.messages) == 1


def test_get_class_own_base(install: Install) -> None:
    """The name base.message is ours, whoever else declares it."""
    name = install("", "base.message = {}:Message")
    load_message_classes()
    assert get_class("base.message") is Message
    assert name not in sys.modules


def test_get_class_groups(install: Install) -> None:
    """Our own group goes before fedora-messaging's."""
    install(UPDATE, "update.v1 = {}:Update")
    ours = install(UPDATE, "update.v1 = {}:Update", group="fmconsume.messages")
    install(UPDATE, "update.v1 = {}:Update")
    assert get_class("update.v1").__module__ == ours


def test_get_name(install: Install) -> None:
    """A class gives its name, also under the names that schema packages' tests use."""
    name = install(UPDATE, "update.v1 = {}:Update", "named.v1 = {}:Named")
    update = __import__(name).Update
    assert get_name(Message) == "base.message"
    assert get_name(update) == "update.v1"
    assert module._class_to_schema_name[update] == "update.v1"
    assert module._schema_name_to_class["named.v1"] is sys.modules[name].Named


def test_import_is_light() -> None:
    """Importing fmconsume looks at no package for message classes."""
    code = (
        "from importlib import metadata; metadata.distributions = metadata.entry_points = None\n"
        "import fmconsume.message as m; m.Message(); assert not m._declarations.cache_info().misses"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Text


def test_dumps() -> None:
    """A message becomes a line of JSON in fedora-messaging's format, keys in order."""
    message = decode(deliver('{"b": "ž", "a": 1}'.encode(), priority=2))
    assert dumps(message) == (
        '{"body": {"a": 1, "b": "ž"}, "headers": {"fedora_messaging_schema": "base.message", '
        '"fedora_messaging_severity": 30, "sent-at": "2024-06-10T06:13:20+00:00"}, '
        '"id": "m-1", "priority": 2, "queue": "a queue", "topic": "a.topic"}\n'
    )


def test_dumps_several() -> None:
    """Several messages are several lines."""
    messages = [Message({"n": n}, topic="t") for n in range(3)]
    text = dumps(messages)
    assert text.count("\n") == 3
    assert text.endswith("\n")
    assert loads(text) == messages


def test_dumps_odd_headers() -> None:
    """Header values that JSON does not have become strings."""
    headers = {
        "time": datetime.datetime(2024, 6, 10, tzinfo=datetime.timezone.utc),
        "decimal": Decimal("1.5"),
        "bytes": b"\xffa",
        "table": {"list": [Decimal(2), None, True]},
        b"\xff": 1,
    }
    (message,) = loads(dumps(decode(deliver(headers={**FEDORA_HEADERS, **headers}))))
    assert {key: message.headers[key] for key in ("time", "decimal", "bytes", "table")} == {
        "time": "2024-06-10T00:00:00+00:00",
        "decimal": "1.5",
        "bytes": r"\xffa",
        "table": {"list": ["2", None, True]},
    }
    assert message.headers[r"\xff"] == 1


@pytest.mark.parametrize("body", [[], {("a", "b"): 1}, {1: 1, "a": 1}])
def test_dumps_invalid(body: Any) -> None:
    """A message that is invalid or not JSON is not written."""
    with pytest.raises(ValidationError):
        dumps([Message(), Message(body)])


def test_dumps_cycle() -> None:
    """A body that holds itself is not written."""
    body: dict[str, Any] = {}
    body["body"] = body
    with pytest.raises(ValidationError, match="not JSON"):
        dumps(Message(body))


def test_loads(install: Install) -> None:
    """A line becomes the message that it was, of its class, with all that is known of it."""
    install(UPDATE, "update.v1 = {}:Update")
    headers = named("update.v1", other="x")
    message = decode(deliver(b'{"id": 3}', headers, message_id="m-2", priority=7))
    (loaded,) = loads(dumps(message))
    assert loaded.summary == "Update 3"
    assert loaded.headers == {
        **headers,
        "fedora_messaging_schema_package": "update_messages",
        "priority": 7,
    }
    assert (loaded.id, loaded.queue, loaded.priority) == ("m-2", "a queue", 7)
    assert (loaded.topic, loaded.severity) == ("a.topic", WARNING)


def test_loads_unknown_schema() -> None:
    """A message of a missing class keeps the schema that it had."""
    (loaded,) = loads(dumps(decode(deliver(headers=named("missing.v1")))))
    assert loaded.headers["fedora_messaging_schema"] == "missing.v1"


def test_loads_least() -> None:
    """A topic and a body are enough; empty lines do not count."""
    (message,) = loads('\n{"topic": "t", "body": {"a": 1}}\r\n\n')
    assert (message.topic, message.body, message.severity) == ("t", {"a": 1}, INFO)
    assert message.id
    message.validate()


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\x0b", "\x1c", "\n", "\ud800"])
def test_loads_line_separators(character: str) -> None:
    """Only a newline ends a line, whatever else Unicode takes for one."""
    message = Message({"a": character})
    assert loads(dumps(message)) == [message]


@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=5
    )
)
def test_loads_reverses_dumps(body: dict[str, Any]) -> None:
    """What was written is read again."""
    message = Message(body, topic="t")
    assert loads(dumps([message, message])) == [message, message]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 3: JSONDecodeError: "),
        ("[" * 100_000, "line 3: RecursionError: "),
        ("[]", "line 3: found a list, expected an object"),
        ('{"topic": "t"}', "line 3: body is missing"),
        ('{"body": {}}', "line 3: topic is missing"),
        ('{"topic": 5, "body": {}}', "line 3: topic is 5, expected string"),
        ('{"topic": "t", "body": []}', "line 3: body is [], expected object"),
        ('{"topic": "t", "body": {}, "id": 5}', "line 3: id is 5, expected string or null"),
        ('{"topic": "t", "body": {}, "queue": 5}', "line 3: queue is 5"),
        ('{"topic": "t", "body": {}, "priority": "x"}', "line 3: priority is 'x'"),
        ('{"topic": "t", "body": {}, "headers": null}', "line 3: headers is None"),
        (
            '{"topic": "t", "body": {}, "headers": {"fedora_messaging_severity": 5}}',
            "line 3: fedora_messaging_severity is 5, expected 10, 20, 30 or 40",
        ),
        (json.dumps({"topic": "x" * 10**6, "body": "x" * 10**6}), "line 3: body is 'xxx"),
    ],
    ids=lambda text: text[:60],
)
def test_loads_broken_line(line: str, reason: str) -> None:
    """The error names the line and the reason, shortly."""
    with pytest.raises(ValidationError) as raised:
        loads(f'{{"topic": "t", "body": {{}}}}\n\n{line}\n')
    assert str(raised.value).startswith(reason)
    assert len(str(raised.value)) <= 300


def test_load_line_failing_constructor(install: Install) -> None:
    """A class that cannot hold a line's body makes the line invalid."""
    install(UPDATE + "    def __init__(self, **kwargs): raise KeyError(5)\n", "named = {}:Named")
    line = json.dumps({"topic": "t", "body": {}, "headers": named("named")})
    with pytest.raises(ValidationError, match="line 9: KeyError: 5"):
        load_line(line, 9)


def test_load_message() -> None:
    """A dict of the published schema's form becomes a message."""
    fields = {"topic": "t", "body": {"a": 1}, "id": "x", "queue": None, "priority": None}
    assert set(fields) | {"headers"} == set(SERIALIZED_MESSAGE_SCHEMA["properties"])
    schema.check(Message, "body", SERIALIZED_MESSAGE_SCHEMA, fields)
    message = load_message(fields)
    assert (message.id, message.queue, message.priority) == ("x", None, 0)


# -- copies ----------------------------------------------------------------------------


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
