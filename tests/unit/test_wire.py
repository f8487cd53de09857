"""Tests of the readers and the writer of deliveries, beside pika's own and against known bytes."""

from __future__ import annotations

import copy
import datetime
import decimal
import math
import random
import struct
import time
from typing import Any

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec
from pika.callback import CallbackManager
from pika.compat import long
from pika.data import decode_value

from fmconsume.broker.wire import (
    Deliver,
    EncodedProperties,
    Properties,
    encode_published,
    expect_no_callbacks,
    install,
    ordered,
    published,
    salvage,
    writable,
)
from tests import fuzz_wire

UTC = datetime.timezone.utc
#: What pika's times have: UTC since 1.4, nothing before.
ZONE = decode_value(b"T" + bytes(8), 0)[0].tzinfo
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MOMENTS = st.datetimes(
    datetime.datetime(1970, 1, 1), datetime.datetime(9999, 12, 31), timezones=st.just(ZONE)
).map(lambda moment: moment.replace(microsecond=0))
DECIMALS = st.builds(
    lambda digits, scale: decimal.Decimal(digits).scaleb(-scale),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 20),
)
#: Not below -2**31: pika 1.3 reads what it writes there as another number.
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**63 - 1)
    | TEXT
    | st.binary(max_size=40)
    | MOMENTS
    | DECIMALS
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            *[("content_type", "content_encoding", "correlation_id", "reply_to", "expiration")],
            TEXT,
        ),
        **dict.fromkeys(("message_id", "type", "user_id", "app_id", "cluster_id"), TEXT),
        "headers": st.dictionaries(TEXT, VALUES, max_size=4),
        "delivery_mode": st.integers(0, 255),
        "priority": st.integers(0, 255),
        "timestamp": st.integers(0, 2**64 - 1),
    },
)


def encode(properties: spec.BasicProperties) -> bytes:
    """Give the bytes that go over the wire."""
    return b"".join(properties.encode())


def read(encoded: bytes) -> Properties:
    """Read them with our reader."""
    return Properties().decode(encoded)


def in_header(value: bytes) -> bytes:
    """Give properties with one header "h" that holds an encoded value."""
    table = b"\x01h" + value
    return b"\x20\x00" + struct.pack(">I", len(table)) + table


def table(*entries: tuple[bytes, bytes]) -> bytes:
    """Encode a table of encoded values."""
    content = b"".join(bytes([len(name)]) + name + value for name, value in entries)
    return struct.pack(">I", len(content)) + content


# -- beside pika's own ------------------------------------------------------------------


@given(values=PROPERTIES)
@settings(max_examples=500)
def test_decode_as_pika(values: dict[str, Any]) -> None:
    """Whatever pika can write is read as pika reads it, to the type."""
    theirs = spec.BasicProperties(**values)
    encoded = encode(theirs)
    expected, found = spec.BasicProperties().decode(encoded), read(encoded)
    assert found == expected
    assert expected == found
    assert repr(found) == repr(expected)
    assert not found.flaw
    assert encode(found) == encode(expected)
    assert types_of(found.headers) == types_of(expected.headers)
    assert encode(copy.copy(found)) == encode(copy.deepcopy(found)) == encoded
    assert all(getattr(found, name) == value for name, value in vars(expected).items())


def types_of(value: Any) -> Any:
    """Replace each value inside by its type."""
    if isinstance(value, dict):
        return {key: types_of(each) for key, each in value.items()}
    return [types_of(each) for each in value] if isinstance(value, list) else type(value)


@given(tag=TEXT, number=st.integers(0, 2**64 - 1), redelivered=st.booleans(), key=TEXT, name=TEXT)
def test_decode_deliver_as_pika(
    tag: str, number: int, redelivered: bool, key: str, name: str
) -> None:
    """A basic.deliver is read as pika reads it, wherever in the frame it begins."""
    theirs = spec.Basic.Deliver(tag, number, redelivered, name, key)
    encoded = b"1234" + b"".join(theirs.encode())
    found = Deliver().decode(encoded, 4)
    assert found == theirs
    assert isinstance(found, spec.Basic.Deliver)


def test_equal() -> None:
    """Properties are equal to equal ones only."""
    assert Properties(priority=1) == pika.BasicProperties(priority=1)
    assert Properties(priority=1) != pika.BasicProperties(priority=2)
    assert Properties() != "nothing"


def test_install() -> None:
    """pika makes these of what it reads, also for others in the process."""
    install()
    properties = pika.BasicProperties(headers={"a": "b"}, message_id="apple")
    frame = pika.frame.Header(1, 5, properties).marshal()
    _, found = pika.frame.decode_frame(frame)
    assert type(found.properties) is Properties
    assert found.properties == properties
    method = pika.frame.Method(1, spec.Basic.Deliver("tag", 7, True, "", "fruit")).marshal()
    _, found = pika.frame.decode_frame(method)
    assert type(found.method) is Deliver
    assert (found.method.delivery_tag, found.method.redelivered) == (7, True)


# -- against bytes known by hand ----------------------------------------------------------


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b"t\x01", True),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xfe", -2),
        (b"u\xff\xfe", 65534),
        (b"I\xff\xff\xff\xff", -1),
        (b"i\xff\xff\xff\xff", 2**32 - 1),
        (b"l\xff\xff\xff\xff\xff\xff\xff\xff", long(-1)),
        (b"L\x80\x00\x00\x00\x00\x00\x00\x00", long(-(2**63))),
        (b"f\x3f\xc0\x00\x00", 1.5),
        (b"d\x3f\xb9\x99\x99\x99\x99\x99\x9a", 0.1),
        (b"d\x7f\xf0\x00\x00\x00\x00\x00\x00", math.inf),
        (b"D\x02\x00\x00\x00\x7d", decimal.Decimal("1.25")),
        (b"S\x00\x00\x00\x02\xc3\xa4", "ä"),
        (b"S\x00\x00\x00\x01\xe4", b"\xe4"),
        (b"x\x00\x00\x00\x02ab", b"ab"),
        (b"V", None),
        (b"A\x00\x00\x00\x03Vt\x00", [None, False]),
        (b"A\x00\x00\x00\x00", []),
        (b"F" + table((b"a", b"V"), (b"\xff", b"b\x01")), {"a": None, b"\xff": 1}),
        (b"T\x00\x00\x00\x00\x00\x00\x00\x00", datetime.datetime(1970, 1, 1, tzinfo=ZONE)),
        # In milliseconds, as Java and JavaScript have it, and before 1970.
        (b"T" + struct.pack(">Q", 1_772_000_000_000), 1_772_000_000_000),
        (b"T\xff\xff\xff\xff\xff\xff\xff\xff", -1),
    ],
    ids=repr,
)
def test_decode_value(encoded: bytes, expected: Any) -> None:
    """Each type of RabbitMQ's is read as it is meant; what Python does not have is a number."""
    properties = read(in_header(encoded))
    assert not properties.flaw
    found = properties.headers["h"]
    assert (found, type(found)) == (expected, type(expected))


def test_decode_x_death() -> None:
    """What a dead-letter exchange adds is read: an array of tables with arrays and times."""
    death = table(
        (b"count", b"l\x00\x00\x00\x00\x00\x00\x00\x02"),
        (b"reason", b"S\x00\x00\x00\x07expired"),
        (b"time", b"T\x00\x00\x00\x00\x67\x00\x00\x00"),
        (b"routing-keys", b"A\x00\x00\x00\x08S\x00\x00\x00\x03a.b"),
    )
    array = b"F" + death
    properties = read(in_header(b"A" + struct.pack(">I", len(array)) + array))
    assert properties.headers == {
        "h": [
            {
                "count": 2,
                "reason": "expired",
                "time": datetime.datetime.fromtimestamp(0x67000000, UTC).replace(tzinfo=ZONE),
                "routing-keys": ["a.b"],
            }
        ]
    }


def test_decode_more_flags() -> None:
    """Further words of flags are passed over."""
    assert read(b"\x08\x01\x00\x01\x00\x00\x07").priority == 7


# -- what cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoded", "flaw"),
    [
        (b"", "index out of range"),
        (b"\x20\x00\x00\x00\x00\xff", "cut short"),
        (in_header(b"Z\x00"), "unknown type 'Z'"),
        (in_header(b"S\x00\x00\xff\xffab"), "cut short"),
        (in_header(b"I\x00"), "unpack_from requires"),
        (in_header(b"F\x00\x00\x00\x09\x01aV"), "cut short"),
        (b"\x80\x00\xffabc", "cut short"),
        (b"\x00\x40\x00\x00", "unpack_from requires"),
    ],
)
def test_decode_flaw(encoded: bytes, flaw: str) -> None:
    """What cannot be read has a flaw and its bytes, and nothing else."""
    properties = read(encoded)
    assert flaw in properties.flaw
    assert properties.raw == encoded
    assert set(vars(properties)) == {"flaw", "raw"}
    assert properties == pika.BasicProperties()


@pytest.mark.parametrize("opening", [b"F", b"A"])
def test_decode_nested_for_ever(opening: bytes) -> None:
    """131,072 bytes of tables inside tables take no time, and no stack."""
    inside = b""
    while len(inside) < 131_000:
        name = b"\x01a" if opening == b"F" else b""
        inside = name + opening + struct.pack(">I", len(inside)) + inside
        if len(inside) > 4000:  # Further layers are as good as any.
            inside = inside + b"\x01aV" * 40_000 if opening == b"F" else inside + b"V" * 127_000
    encoded = in_header(opening + struct.pack(">I", len(inside)) + inside)
    began = time.perf_counter()
    assert "nested more than" in read(encoded).flaw
    assert time.perf_counter() - began < 1


@given(encoded=st.binary(max_size=300))
@settings(max_examples=2000)
def test_decode_anything(encoded: bytes) -> None:
    """Whatever comes, reading ends and raises nothing."""
    properties = read(encoded)
    assert properties.flaw or properties.published


def test_decode_mutilated() -> None:
    """Good properties with any bytes changed or cut off raise nothing either."""
    good = encode(
        spec.BasicProperties(
            content_type="application/json",
            headers={"a": [1, {"b": decimal.Decimal("1.5"), "c": None}], "d": "e" * 50, "f": True},
            message_id="apple",
            timestamp=7,
        )
    )
    rng = random.Random(1)
    for _ in range(20_000):
        bad = bytearray(good[: rng.randint(0, len(good))] if rng.random() < 0.3 else good)
        for _ in range(rng.randint(0, 4)):
            if bad:
                bad[rng.randrange(len(bad))] = rng.randrange(256)
        read(bytes(bad))


# -- what was published -------------------------------------------------------------------


@given(values=PROPERTIES, count=st.integers(0, 2**31 - 1))
def test_published(values: dict[str, Any], count: int) -> None:
    """What was published is the same with the broker's counts and without."""
    headers = values.get("headers") or {}
    counts = {"x-delivery-count": count, "x-acquired-count": long(count)}
    counted = {**values, "headers": {**counts, **headers, **counts}}
    first = read(encode(spec.BasicProperties(**values)))
    again = read(encode(spec.BasicProperties(**counted)))
    if counts.keys().isdisjoint(headers):
        assert first.published == again.published == published(pika.BasicProperties(**values))
    assert first.published


@given(headers=st.dictionaries(TEXT, VALUES, min_size=2, max_size=4), count=st.integers(0, 9))
def test_ordered(headers: dict[str, Any], count: int) -> None:
    """A broker that sorts the headers, and adds a count, makes no other message of it."""
    counted = dict(sorted({**headers, "x-delivery-count": count}.items()))
    if "x-delivery-count" not in headers:
        first, again = (
            ordered(published(pika.BasicProperties(message_id="apple", headers=each)))
            for each in (headers, counted)
        )
        assert first == again != ()
    assert ordered(()) == ()


@pytest.mark.parametrize("value", [object(), "\ud800", 2**70])
def test_published_impossible(value: Any) -> None:
    """Of what cannot be sent nothing was published."""
    assert published(pika.BasicProperties(headers={"h": value})) == ()


# -- writing ------------------------------------------------------------------------------


@given(values=PROPERTIES, floats=st.lists(st.floats(allow_nan=False), max_size=3))
def test_encode_floats(values: dict[str, Any], floats: list[float]) -> None:
    """Floats in headers are sent, wherever they are, and come back as they were."""
    headers = {**(values.get("headers") or {}), "f": floats, "g": {"h": floats}, "i": 0.1}
    properties = Properties(**{**values, "headers": headers})
    found = read(encode(properties))
    assert found == properties
    assert found.headers["g"] == {"h": floats}


def test_expect_no_callbacks() -> None:
    """pika finds the callbacks for every method but ours for a delivery, and of that connection."""
    manager, other = CallbackManager(), CallbackManager()
    expect_no_callbacks(manager)
    for each in (manager, other):
        for method in (spec.Basic.Deliver, spec.Basic.GetEmpty):
            each.add(1, method, print)
    assert manager.pending(1, Deliver()) is None
    assert manager.pending(1, spec.Basic.GetEmpty()) == 1
    assert other.pending(1, Deliver()) == 1


def test_decode_fuzz() -> None:
    """Whatever bytes come, they are read or are a flaw; `python -m tests.fuzz_wire` has more."""
    assert "none raised" in fuzz_wire.main(3000)


@given(PROPERTIES, st.booleans())
def test_encode_published(values: dict[str, Any], has_count: bool) -> None:
    """Properties that were on the wire can be written again to the byte, but for the counts."""
    values = {name: value for name, value in values.items() if value != {}}
    counts = {"x-delivery-count": 3} if has_count else {}
    headers = {**values.get("headers", {}), **counts}
    sent = Properties(**{**values, **({"headers": headers} if headers else {})})
    found = read(encode(sent))
    assert encode_published(("exchange", *found.published)) == encode(Properties(**values))


def test_encode_published_further_flags() -> None:
    """Further words of flags, to which AMQP gives no meaning, are left out."""
    found = read(b"\x80\x01\x00\x00\x04text")
    assert encode_published(found.published) == b"\x80\x00\x04text"


@given(PROPERTIES)
def test_salvage(values: dict[str, Any]) -> None:
    """Of properties that can be encoded nothing is lost."""
    values = {name: value for name, value in values.items() if value != {}}
    assert salvage(pika.BasicProperties(**values)) == (encode(Properties(**values)), [])


@pytest.mark.parametrize("name", ["headers", "priority", "message_id"])
def test_salvage_names_what_is_lost(name: str) -> None:
    """What cannot be encoded is named, and left out."""
    properties = pika.BasicProperties(**{"app_id": "a", name: object()})
    assert salvage(properties) == (encode(Properties(app_id="a")), [name])


def test_encoded_properties() -> None:
    """Bytes are written as they are, also by what makes a copy."""
    raw = in_header(b"?")
    assert encode(EncodedProperties(raw)) == encode(writable(EncodedProperties(raw))) == raw
