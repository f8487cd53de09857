"""Tests of the ledger: whatever the order of outcomes, the broker learns each of them once."""

from __future__ import annotations

from typing import Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.delivery import ACK, DROP, NACK, REJECT, Frame, Verdict
from fmconsume.engine.ledger import Ledger

#: A tag to deliver, or a batch of verdicts to settle.
Step = Union[int, dict[int, Verdict]]


class Broker:
    """The broker's side of a channel."""

    def __init__(self) -> None:
        self.outstanding: list[int] = []
        self.settled: list[tuple[int, Verdict]] = []

    def obey(self, frame: Frame) -> None:
        """Settle what a frame covers; with multiple that is every outstanding tag up to it."""
        assert frame.tag in self.outstanding, "the broker closes the channel with 406"
        assert not (frame.multiple and frame.verdict in (DROP, REJECT)), "basic.reject has no such"
        covered = [
            tag
            for tag in self.outstanding
            if tag == frame.tag or (frame.multiple and tag < frame.tag)
        ]
        self.settled += [(tag, frame.verdict) for tag in covered]
        self.outstanding = [tag for tag in self.outstanding if tag not in covered]


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Mix deliveries with batches of outcomes in any order, and settle all of them in the end."""
    steps: list[Step] = []
    open_tags: list[int] = []
    last = 0
    for is_delivery in draw(st.lists(st.booleans(), max_size=40)):
        if is_delivery:
            last += draw(st.integers(1, 3))
            open_tags.append(last)
            steps.append(last)
        elif open_tags:
            tags = draw(st.lists(st.sampled_from(open_tags), unique=True))
            steps.append({tag: draw(st.sampled_from(Verdict)) for tag in tags})
            open_tags = [tag for tag in open_tags if tag not in tags]
    steps.append({tag: draw(st.sampled_from(Verdict)) for tag in draw(st.permutations(open_tags))})
    return steps


def count_fewest(outstanding: list[int], batch: dict[int, Verdict]) -> int:
    """Count the frames that a batch takes when only acks at the head can share one."""
    head = 0
    for tag in outstanding:
        if tag not in batch:
            break
        head += batch[tag] is ACK
    return len(batch) - max(0, head - 1)


@given(histories())
def test_settle_any_interleaving(steps: list[Step]) -> None:
    """Each tag is settled exactly once, at once, with its own verdict and in the fewest frames."""
    ledger, broker = Ledger(), Broker()
    expected: dict[int, Verdict] = {}
    for step in steps:
        if isinstance(step, int):
            ledger.deliver(step)
            broker.outstanding.append(step)
            continue
        fewest = count_fewest(broker.outstanding, step)
        frames = ledger.settle(step)
        for frame in frames:
            broker.obey(frame)
        expected.update(step)
        assert dict(broker.settled) == expected
        assert len(broker.settled) == len(expected)
        assert len(frames) == fewest <= len(step)
        assert len(ledger) == len(broker.outstanding)
    assert not broker.outstanding


def deliver(*tags: int) -> Ledger:
    """Make a ledger with outstanding tags."""
    ledger = Ledger()
    for tag in tags:
        ledger.deliver(tag)
    return ledger


def test_settle_contiguous_head() -> None:
    """Acks from the oldest tag on become one frame, in whatever order they come."""
    ledger = deliver(1, 2, 3, 4)
    assert ledger.settle({2: ACK, 1: ACK, 3: ACK}) == [Frame(3, ACK, True)]


def test_settle_single_head() -> None:
    """One ack is no multiple."""
    assert deliver(1, 2).settle({1: ACK}) == [Frame(1, ACK, False)]


def test_settle_out_of_order() -> None:
    """An ack out of order is sent at once, on its own."""
    ledger = deliver(1, 2, 3)
    assert ledger.settle({3: ACK}) == [Frame(3, ACK, False)]
    assert ledger.settle({1: ACK, 2: ACK}) == [Frame(2, ACK, True)]


def test_settle_run_over_settled_tags() -> None:
    """Tags that were settled earlier do not interrupt a run."""
    ledger = deliver(1, 2, 3)
    ledger.settle({2: NACK})
    assert ledger.settle({1: ACK, 3: ACK}) == [Frame(3, ACK, True)]


def test_settle_other_verdict_within_run() -> None:
    """What is not acknowledged goes first, so that the frame of the run cannot cover it."""
    frames = deliver(1, 2, 3).settle({1: ACK, 2: DROP, 3: ACK})
    assert frames == [Frame(2, DROP, False), Frame(3, ACK, True)]


def test_settle_nothing() -> None:
    """An empty batch takes no frame."""
    assert deliver(1).settle({}) == []


@pytest.mark.parametrize("tag", [1, 9], ids=["settled", "unknown"])
def test_settle_not_outstanding(tag: int) -> None:
    """A tag that is not outstanding is an error that names it, and settles nothing else."""
    ledger = deliver(1, 2)
    ledger.settle({1: ACK})
    with pytest.raises(ValueError, match=str(tag)):
        ledger.settle({tag: ACK, 2: ACK})
    assert ledger.settle({2: NACK}) == [Frame(2, NACK, False)]


def test_len_counts_outstanding() -> None:
    """The length is the number of outstanding tags."""
    ledger = deliver(1, 2, 3)
    ledger.settle({2: ACK})
    assert len(ledger) == 2
