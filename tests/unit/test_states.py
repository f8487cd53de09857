"""Tests of what the engine tells of itself."""

from __future__ import annotations

import json

import pytest

from fmconsume.delivery import Verdict
from fmconsume.engine.states import Phase, State, Stats


def test_state_name_is_text() -> None:
    """A state is a pair of strings for those who do not know the phases."""
    state = State(Phase.PREFETCH_FULL, "all is held")
    assert state == ("prefetch full", "all is held")
    assert f"{state.name}" == str(state.name) == "prefetch full"
    assert json.loads(json.dumps(state.name)) == "prefetch full"


@pytest.mark.parametrize("phase", Phase)
def test_phase_is_consuming_or_ending(phase: Phase) -> None:
    """No phase is both, and only those that do not consume may be neither."""
    assert not (phase.is_consuming and phase.is_ending)
    assert State(phase, "").is_consuming is phase.is_consuming


def test_phase_stuck() -> None:
    """While one worker is left messages are consumed, while none is they are not."""
    assert Phase.PARTLY_STUCK.is_consuming
    assert not Phase.STUCK.is_consuming
    assert Phase.STUCK.needs_attention
    assert Phase.PARTLY_STUCK.needs_attention


@pytest.mark.parametrize("verdict", Verdict)
def test_stats_count(verdict: Verdict) -> None:
    """Each verdict is counted under its own word."""
    stats = Stats()
    stats.count(verdict)
    stats.count(verdict, 2)
    assert str(stats) == f"{verdict.value} 3"
