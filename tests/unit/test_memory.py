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
    assert memory.recall(make_delivery()) is None
    assert [memory.count_nack(make_delivery()) for _ in range(2)] == [0, 0]


def finish(memory: Memory, name: str) -> None:
    """Finish a message of this name."""
    memory.finish(make_delivery(message_id=name), Verdict.ACK)


def give_back(memory: Memory, name: str) -> None:
    """Nack a message of this name."""
    memory.count_nack(make_delivery(message_id=name))


@given(
    size=st.integers(1, 20),
    steps=st.lists(
        st.tuples(st.sampled_from([finish, give_back]), st.sampled_from("abcdefgh")), max_size=60
    ),
)
def test_finish_among_nacks(
    size: int, steps: list[tuple[Callable[[Memory, str], None], str]]
) -> None:
    """The last to be finished are remembered, however often which messages are returned."""
    memory = Memory(size)
    for step, name in steps:
        step(memory, name)
    last = {name: step for step, name in steps}
    youngest = [name for step, name in steps if step is finish][-size:]
    for name, step in last.items():
        recalled = memory.recall(make_delivery(message_id=name))
        if step is give_back:
            assert recalled is None
        elif name in youngest:
            assert recalled is Verdict.ACK


def test_count_nack_beyond_size() -> None:
    """The message whose return is longest ago is counted afresh."""
    memory = Memory(2)
    for name in ("apple", "pear", "apple", "plum"):
        give_back(memory, name)
    counts = {each: memory.count_nack(make_delivery(message_id=each)) for each in ("apple", "pear")}
    assert counts == {"apple": 2, "pear": 0}


def test_count_nack_after_finish() -> None:
    """A message that was finished meanwhile is counted afresh."""
    memory = Memory(10)
    give_back(memory, "apple")
    finish(memory, "apple")
    assert memory.count_nack(make_delivery(message_id="apple")) == 0


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


@pytest.mark.parametrize(("size", "most"), [(1, 9), (2, 9), (80, 90), (100, 117)])
def test_finish_beyond_size(size: int, most: int) -> None:
    """The oldest messages are forgotten first: a little more than the size is held, never less."""
    memory = Memory(size)
    names = [str(number) for number in range(1000)]
    for count, name in enumerate(names, 1):
        finish(memory, name)
        recent = names[max(0, count - most - 1) : count]
        held = [memory.recall(make_delivery(message_id=each)) for each in recent]
        assert None not in held[-size:]
        assert held.count(Verdict.ACK) <= most
