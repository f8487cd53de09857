"""Tests of the delays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.broker.backoff import Backoff, nack_delay


def longest(low: float, high: float) -> float:
    """Stand in for the random number: the ceiling."""
    assert low == 0
    return high


def test_next_doubles_to_maximum() -> None:
    """The ceiling doubles until it meets the maximum."""
    backoff = Backoff(1, 10, longest)
    assert [backoff.next() for _ in range(6)] == [1, 2, 4, 8, 10, 10]


def test_next_is_jittered() -> None:
    """A delay lies anywhere between 0 and its ceiling."""
    backoff = Backoff(4, 4)
    delays = [backoff.next() for _ in range(200)]
    assert 0 <= min(delays) < 2 < max(delays) <= 4


def test_reset_starts_again() -> None:
    """After a reset the first ceiling holds again."""
    backoff = Backoff(1, 60, longest)
    backoff.next()
    backoff.next()
    backoff.reset()
    assert backoff.next() == 1


def test_next_by_default() -> None:
    """Without arguments delays grow from 1 s to 60 s."""
    backoff = Backoff(uniform=longest)
    assert [backoff.next() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(("earlier", "expected"), [(0, 1), (1, 2), (5, 32), (6, 60), (10**9, 60)])
def test_nack_delay_doubles(earlier: int, expected: float) -> None:
    """A Nack is held twice as long each time, up to the maximum."""
    assert nack_delay(1, 60, earlier) == expected


@given(st.floats(0, 1e9), st.integers(0))
def test_nack_delay_off(maximum: float, earlier: int) -> None:
    """An initial delay of 0 turns holding off."""
    assert nack_delay(0, maximum, earlier) == 0


@given(st.floats(0, 1e6, exclude_min=True), st.floats(0, 1e6), st.integers(0))
def test_nack_delay_bounds(initial: float, maximum: float, earlier: int) -> None:
    """A delay never shrinks from one Nack to the next, nor exceeds the maximum."""
    delay = nack_delay(initial, maximum, earlier)
    assert 0 <= delay <= maximum
    assert delay <= nack_delay(initial, maximum, earlier + 1)
