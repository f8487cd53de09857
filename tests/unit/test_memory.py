"""Tests of the memory of finished messages."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.engine.delivery import Verdict
from fmconsume.engine.memory import Memory, identity

from .fakes import make_delivery


@pytest.mark.parametrize("verdict", [Verdict.ACK, Verdict.DROP, Verdict.REJECT])
def test_recall_finished(verdict: Verdict) -> None:
    """A finished message is recalled with its own verdict, whatever its tag is now."""
    memory = Memory(10)
    memory.finish(make_delivery(1, 1), verdict)
    assert memory.recall(make_delivery(2, 7, redelivered=True)) is verdict


@pytest.mark.parametrize(
    "change",
    [{"message_id": "pear"}, {"queue": "veg"}, {"routing_key": "fruit.raw"}, {"body": b"[]"}],
    ids=lambda change: next(iter(change)),
)
def test_recall_other_message(change: dict[str, Any]) -> None:
    """A message that differs in any part of its identity is another one."""
    memory = Memory(10)
    memory.finish(make_delivery(), Verdict.ACK)
    assert memory.recall(make_delivery(**change)) is None
    assert identity(make_delivery()) != identity(make_delivery(**change))


@pytest.mark.parametrize("message_id", [None, ""])
def test_finish_without_message_id(message_id: str) -> None:
    """A message without an id is not remembered."""
    memory = Memory(10)
    memory.finish(make_delivery(message_id=message_id), Verdict.ACK)
    assert memory.recall(make_delivery(message_id=message_id)) is None


def test_finish_turned_off() -> None:
    """A memory of size 0 remembers nothing."""
    memory = Memory(0)
    memory.finish(make_delivery(), Verdict.ACK)
    memory.count_nack(make_delivery(message_id="pear"))
    assert memory.recall(make_delivery()) is None
    assert len(memory) == 0


def test_finish_beyond_size() -> None:
    """The oldest message is forgotten first."""
    memory = Memory(2)
    for name in ("apple", "pear", "plum"):
        memory.finish(make_delivery(message_id=name), Verdict.ACK)
    assert memory.recall(make_delivery(message_id="apple")) is None
    assert memory.recall(make_delivery(message_id="pear")) is Verdict.ACK
    assert memory.recall(make_delivery(message_id="plum")) is Verdict.ACK
    assert len(memory) == 2


def finish(memory: Memory, name: str) -> None:
    """Finish a message of this name."""
    memory.finish(make_delivery(message_id=name), Verdict.ACK)


def give_back(memory: Memory, name: str) -> None:
    """Nack a message of this name."""
    memory.count_nack(make_delivery(message_id=name))


@given(
    size=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from([finish, give_back]), st.sampled_from("abcdefgh"))),
)
def test_finish_after_nacks(
    size: int, steps: list[tuple[Callable[[Memory, str], None], str]]
) -> None:
    """What was finished last is remembered longest, however often it was returned before."""
    memory = Memory(size)
    last: dict[str, Callable[[Memory, str], None]] = {}
    for step, name in steps:
        step(memory, name)
        last.pop(name, None)
        last[name] = step
    assert len(memory) == min(size, len(last))
    for name in list(last)[-size:]:
        expected = Verdict.ACK if last[name] is finish else None
        assert memory.recall(make_delivery(message_id=name)) is expected


def test_count_nack_counts() -> None:
    """Each return of a message counts the ones before it."""
    memory = Memory(10)
    assert [memory.count_nack(make_delivery(tag=n)) for n in range(1, 4)] == [0, 1, 2]
    assert memory.count_nack(make_delivery(message_id="pear")) == 0


def test_count_nack_is_no_verdict() -> None:
    """A message that was returned has to run again."""
    memory = Memory(10)
    memory.count_nack(make_delivery())
    assert memory.recall(make_delivery(redelivered=True)) is None


@pytest.mark.parametrize("header", ["x-delivery-count", "x-acquired-count"])
def test_count_nack_quorum_queue(header: str) -> None:
    """A quorum queue's own count goes before ours."""
    assert Memory(10).count_nack(make_delivery(headers={header: 5})) == 5


@pytest.mark.parametrize("count", ["5", None, 2.5, True])
def test_count_nack_malformed_header(count: Any) -> None:
    """A count that is no integer is left out of account."""
    assert Memory(10).count_nack(make_delivery(headers={"x-delivery-count": count})) == 0


def test_forget() -> None:
    """A message that is forgotten has to run."""
    memory = Memory(10)
    memory.finish(make_delivery(), Verdict.ACK)
    memory.forget(make_delivery(2, 7))
    assert memory.recall(make_delivery(3, 8, redelivered=True)) is None


def test_finish_far_beyond_size() -> None:
    """A large memory holds a little more than its size and never less."""
    memory = Memory(80)
    lengths = set()
    for number in range(1000):
        memory.finish(make_delivery(message_id=str(number)), Verdict.ACK)
        lengths.add(len(memory))
        for recent in (number, max(0, number - 79)):
            assert memory.recall(make_delivery(message_id=str(recent))) is Verdict.ACK
    assert max(lengths) == 90
