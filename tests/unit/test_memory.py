"""Tests of the memory of finished messages."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties

from fmconsume.broker.wire import Properties, published
from fmconsume.delivery import Delivery, Verdict
from fmconsume.engine import memory as memory_module
from fmconsume.engine.memory import RecentVerdicts, fingerprint
from fmconsume.state.notes import Mark

from .fakes import make_delivery

ACK, DROP = Verdict.ACK, Verdict.DROP
MOMENT = datetime.datetime(2026, 1, 1)


def with_properties(**properties: Any) -> Delivery:
    """Make a delivery with these properties, and an id."""
    delivery = make_delivery()
    delivery.properties = BasicProperties(message_id="apple", **properties)
    delivery.published = published(delivery.properties)
    return delivery


# -- identity ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"message_id": "pear"},
        {"queue": "veg"},
        {"routing_key": "fruit.raw"},
        {"body": b"[]"},
        {"headers": {"retries": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_identity_other_message(change: dict[str, Any]) -> None:
    """A message that differs in any part of what was published is another one."""
    assert fingerprint(make_delivery()) != fingerprint(make_delivery(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"priority": 1},
        {"timestamp": 1},
        {"correlation_id": "1"},
        {"expiration": "1"},
        {"type": "a"},
        {"reply_to": "b"},
        {"app_id": "c"},
        {"delivery_mode": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_identity_other_properties(change: dict[str, Any]) -> None:
    """All properties are part of a message's identity."""
    assert fingerprint(with_properties()) != fingerprint(with_properties(**change))


@pytest.mark.parametrize(
    ("one", "other"),
    [(-1, -2), (1, 2**61), (1, True), (1, 1.0), ("1", 1), (MOMENT, str(MOMENT)), ([1], [[1]])],
)
def test_identity_headers_that_hash_alike(one: Any, other: Any) -> None:
    """Values that Python calls equal, or hashes alike, make different messages."""
    assert fingerprint(make_delivery(headers={"n": one})) != fingerprint(
        make_delivery(headers={"n": other})
    )


NAMES = st.text(max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=20)
    | st.binary()
    | st.sampled_from([MOMENT, decimal.Decimal("1.5")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(headers=st.dictionaries(NAMES, VALUES, max_size=4), count=st.integers(0, 100))
def test_identity_redelivered(headers: dict[str, Any], count: int) -> None:
    """A redelivery has the identity of the first delivery, whatever the broker counts in it."""
    counted = {**headers, "x-delivery-count": count, "x-acquired-count": count}
    found = []
    for each in (headers, counted):
        properties = BasicProperties(message_id="apple", headers=each)
        encoded = b"".join(properties.encode())
        delivery = make_delivery(redelivered=each is counted)
        delivery.published = Properties().decode(encoded).published
        found.append(fingerprint(delivery))
    assert found[0] == found[1] != 0


# -- finished ---------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [ACK, DROP, Verdict.REJECT])
def test_recall_finished(verdict: Verdict) -> None:
    """What one session finished settles a redelivery to each later one, with its own verdict."""
    memory = RecentVerdicts(10)
    memory.note_finished(7, verdict, 1)
    for session in (2, 3, 4):
        assert memory.recall(7, session) is verdict


def test_recall_finished_in_this_session() -> None:
    """What a session has finished, or settled, cannot come to it again: there are several."""
    memory = RecentVerdicts(10)
    memory.note_finished(7, ACK, 1)
    memory.note_finished(8, ACK, 2)
    assert memory.recall(7, 2) is ACK
    for key in (7, 8):
        assert memory.recall(key, 2) is None
        assert memory.recall(key, 3) is None


def test_recall_of_several() -> None:
    """Where there were several messages of an identity, none settles another."""
    memory = RecentVerdicts(10)
    memory.note_finished(7, ACK, 1)
    memory.note_finished(7, ACK, 2)
    memory.note_finished(8, ACK, 1)
    assert memory.recall(7, 3) is None
    assert memory.recall(8, 3) is ACK


@pytest.mark.parametrize("is_owed_first", [True, False])
def test_recall_of_one_beside_an_unfinished_one(is_owed_first: bool) -> None:
    """One that is finished does not settle one that the broker has unfinished."""
    memory = RecentVerdicts(10)
    steps = [lambda: memory.note_returned(7), lambda: memory.note_finished(7, ACK, 1)]
    for step in steps if is_owed_first else reversed(steps):
        step()
    assert memory.recall(7, 2) is None
    assert memory.recall(7, 3) is None


def test_recall_of_several_unfinished() -> None:
    """Of two that the broker had unfinished, the first to be finished does not settle the other."""
    memory = RecentVerdicts(10)
    memory.note_returned(7)
    memory.note_returned(7)
    assert memory.recall(7, 2) is None
    memory.note_finished(7, ACK, 2)
    assert memory.recall(7, 3) is None


def test_recall_unfinished_then_finished() -> None:
    """One that was unfinished for a while, and then was finished, is one."""
    memory = RecentVerdicts(10)
    for session in (1, 2, 3):
        memory.note_returned(7)
        assert memory.recall(7, session + 1) is None
    memory.note_finished(7, ACK, 4)
    assert memory.recall(7, 5) is ACK


def test_meet() -> None:
    """One that runs beside a finished one makes several; alone it is one."""
    memory = RecentVerdicts(10)
    memory.note_finished(7, ACK, 1)
    for key in (7, 8):
        memory.note_unfinished(key)
    memory.note_finished(8, ACK, 1)
    assert memory.recall(7, 2) is None
    assert memory.recall(8, 2) is ACK


def test_finish_without_fingerprint() -> None:
    """A message without an identity is not remembered."""
    memory = RecentVerdicts(10)
    memory.note_finished(0, ACK, 1)
    memory.note_returned(0)
    memory.note_unfinished(0)
    assert memory.recall(0, 2) is None


def test_finish_turned_off() -> None:
    """A memory of size 0 remembers nothing."""
    memory = RecentVerdicts(0)
    memory.note_finished(7, ACK, 1)
    memory.note_returned(7)
    assert memory.recall(7, 2) is None


@given(size=st.integers(1, 20), keys=st.lists(st.integers(1, 8), max_size=60))
def test_finish_beyond_size(size: int, keys: list[int]) -> None:
    """The last ones to be finished are remembered, and whether there were several."""
    memory = RecentVerdicts(size)
    for key in keys:
        memory.note_finished(key, ACK, 1)
    for key in range(1, 9):
        is_single = keys.count(key) == 1 and key in keys[-size:]
        if is_single or keys[-size:].count(key) != 1:
            assert memory.recall(key, 2) is (ACK if is_single else None)


def test_owe_beyond_size() -> None:
    """Where it is forgotten that a message is unfinished, its equals still do not settle it."""
    memory = RecentVerdicts(2)
    for key in (7, 8, 9):
        memory.note_returned(key)
    memory.note_finished(7, ACK, 1)
    assert memory.recall(7, 2) is None


@given(
    size=st.integers(1, 3),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["note_finished", "note_returned", "note_unfinished", "recall"]),
            st.integers(1, 6),
        )
    ),
)
def test_size_bounds_everything(size: int, steps: list[tuple[str, int]]) -> None:
    """No part of the memory grows beyond its size, and none fails when it forgets."""
    memory = RecentVerdicts(size)
    for session, (name, key) in enumerate(steps):
        memory.note_returns(key, 1, 0)
        arguments = {"note_finished": (key, ACK, session), "recall": (key, session)}
        getattr(memory, name)(*arguments.get(name, (key,)))
    for store in (memory._order, memory._back_in_queue):
        assert len(store) <= size
    assert memory._finished.keys().isdisjoint(memory._several)
    assert {*memory._finished, *memory._several} == set(memory._order)


# -- returns ----------------------------------------------------------------------------


def test_returns_beyond_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message whose return is longest ago is counted afresh."""
    monkeypatch.setattr(memory_module, "_COUNTED", 2)
    memory = RecentVerdicts(0)
    for key, count in [(1, 1), (2, 1), (1, 2), (3, 1)]:
        memory.note_returns(key, count, 0)
    assert [memory.take_returns(key)[0] for key in (1, 2, 3)] == [1, 0, 1]


def test_returns_are_taken_once() -> None:
    """What comes again takes its count along, and leaves it behind when it is returned."""
    memory = RecentVerdicts(10)
    memory.note_returns(7, 3, 2)
    assert [memory.take_returns(7) for _ in range(2)] == [(3, 2), (0, 0)]
    assert memory.take_returns(8) == (0, 0)


def test_returns_of_equal_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several equal messages has a count; the smallest is given, and many have an end."""
    monkeypatch.setattr(memory_module, "_COUNTED_EQUAL", 3)
    memory = RecentVerdicts(10)
    for count in (2, 1, 1, 5):
        memory.note_returns(7, count, 0)
    assert [memory.take_returns(7)[0] for _ in range(4)] == [1, 1, 2, 0]


# -- marks of other processes -----------------------------------------------------------

RECEIVED, AGAIN = Mark(7, True, is_new=True), Mark(7, True)
SETTLED = Mark(7, True, DROP, is_settled=True)
DONE, DIED = Mark(7, True, DROP), Mark(7, True, returns=2, deaths=1)


@pytest.mark.parametrize(
    ("marks", "verdict"),
    [
        ([RECEIVED, DONE], DROP),
        ([DONE], DROP),
        ([RECEIVED, AGAIN, DONE], DROP),
        ([RECEIVED, DIED, AGAIN, DONE], DROP),
        ([RECEIVED], None),
        ([RECEIVED, DIED], None),
        ([RECEIVED, RECEIVED, DONE], None),
        ([RECEIVED, DONE, RECEIVED], None),
        ([RECEIVED, DONE, DONE], None),
        ([Mark(7, False, DROP)], None),
        ([RECEIVED, DONE, SETTLED], None),
        ([SETTLED, RECEIVED, DONE], DROP),
    ],
)
def test_note_mark_finished(marks: list[Mark], verdict: Verdict | None) -> None:
    """Only where one message is known, and finished, its verdict settles a redelivery."""
    memory = RecentVerdicts(10)
    for mark in marks:
        memory.note_mark(mark)
    assert memory.recall(7, 1) is verdict


def test_note_mark_returns() -> None:
    """The latest mark of a message that was not new tells how often it was returned."""
    memory = RecentVerdicts(10)
    for mark in (RECEIVED, Mark(7, True, returns=1), DIED, Mark(7, True, returns=2, deaths=1)):
        memory.note_mark(mark)
    assert [memory.take_returns(7) for _ in range(2)] == [(2, 1), (0, 0)]
    memory.note_mark(DIED)
    memory.note_mark(DONE)
    assert memory.take_returns(7) == (0, 0)
