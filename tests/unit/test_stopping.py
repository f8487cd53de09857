"""Tests of what a callback may ask about the end of its consumer."""

from __future__ import annotations

import contextvars
import threading

import pytest

from fmconsume import is_stopping, wait_for_stop
from fmconsume.stopping import StopEvent

from .fakes import TIMEOUT


def test_is_stopping_without_consumer() -> None:
    """Where no consumer stops, none is stopping, and a wait lasts as long as it should."""
    StopEvent()
    assert not contextvars.Context().run(is_stopping)
    assert not contextvars.Context().run(wait_for_stop, 0.001)


def test_is_stopping_of_own_consumer() -> None:
    """In the context of a worker its own consumer counts, elsewhere the one made last."""
    first, second = StopEvent(), StopEvent()
    context, other = contextvars.Context(), contextvars.Context()
    context.run(first.adopt)
    first.set()
    assert context.run(is_stopping)
    assert not other.run(is_stopping)
    second.set()
    assert other.run(is_stopping)


@pytest.mark.parametrize("timeout", [TIMEOUT, None, float("inf"), 1e300])
def test_wait_for_stop_ends(timeout: float | None) -> None:
    """A wait, however long, ends once the consumer begins to stop."""
    stop = StopEvent()
    threading.Timer(0.01, stop.set).start()
    assert contextvars.Context().run(wait_for_stop, timeout)
