"""Tests of decoding: a delivery becomes a message or a ValidationError."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume import config, decoding, log
from fmconsume.decoding import decode
from fmconsume.exceptions import ConfigurationException, ValidationError
from fmconsume.message import INFO, SEVERITIES, WARNING, Message, load_message, loads

from .messages import FEDORA_HEADERS, UPDATE, Install, any_headers, deliver, named

MODES = ["object", "json", "bytes"]
NO_CHARSETS = ["zlib", "rot13", "hex", "mbcs", "idna", "punycode", "unicode_escape", "undefined"]

pytestmark = pytest.mark.usefixtures("conf", "fresh_registry")


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
def test_decode_encoding(encoding: str | None) -> None:
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


def test_decode_without_headers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message without headers is one of severity INFO.

    Who stands in for fedora-messaging expects them: a warning comes once a topic.
    """
    for headers in (None, {"mine": 1}):
        assert decode(deliver(headers=headers)).severity == INFO
    assert not caplog.messages
    monkeypatch.setattr(config, "is_fedora_messaging", True)
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
    headers=st.none() | any_headers() | st.text() | st.lists(st.integers()),
    encoding=st.none()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(sorted(decoding._ENCODINGS)),
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

    monkeypatch.setattr(decoding, "_read_json", fail)
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
    assert max(map(len, log._warned["schema"])) < 300


# -- Classes --------------------------------------------------------------------------


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


def test_decode_without_extra(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the extra, messages of a class with a schema come unvalidated, with one warning."""
    install(UPDATE, "update.v1 = {}:Update", "named.v1 = {}:Named")
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    for body in (b'{"id": 3}', b'{"id": "x"}'):
        assert type(decode(deliver(body, named("update.v1")))).__name__ == "Update"
    assert decode(deliver(headers=named("named.v1"))).packages == ["kernel"]
    (warning,) = [each for each in caplog.messages if "not validated" in each]
    assert "Update needs the 'schema' extra" in warning


def test_decode_invalid_schema(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """Messages of a class with an invalid schema come unvalidated, with one warning."""
    source = UPDATE.replace('"integer"', '"nonsense"')
    install(source, "update.v1 = {}:Update")
    for _ in range(2):
        assert decode(deliver(b'{"id": "x"}', named("update.v1"))).body == {"id": "x"}
    (warning,) = [each for each in caplog.messages if "not validated" in each]
    assert "Update is invalid" in warning


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_decode_nan_for_fedora_messaging(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Under the name of fedora-messaging a body may hold what only Python takes for JSON."""
    delivery = deliver(f'{{"n": {name}}}'.encode())
    with pytest.raises(ValidationError, match="is not JSON"):
        decode(delivery)
    message = decode(delivery, allow_nan=True)
    with pytest.raises(ValidationError, match="not JSON"):
        assert message._encoded_body
    monkeypatch.setattr(config, "is_fedora_messaging", True)
    assert str(message.body["n"]) == str(float(name))
    assert message._encoded_body == delivery.body


def test_decode_deprecated(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A deprecated class is one warning."""
    install(UPDATE + "    deprecated = True\n", "named.v1 = {}:Named")
    for _ in range(3):
        decode(deliver(headers=named("named.v1")))
    (warning,) = caplog.messages
    assert re.search(r"deprecated class 'messages_\w+\.Named'", warning)
