"""Tests of how moments and durations are written."""

from __future__ import annotations

import time

import pytest

from fmconsume import moments
from fmconsume.moments import clock, duration


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.00012, "0.1 ms"),
        (0.9999, "999.9 ms"),
        (1, "1.0 s"),
        (59.6, "60 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (864000, "10 d"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    """Times are written as a person would."""
    assert duration(seconds) == expected


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The date is there where it is not today's, whatever the year."""
    now = time.mktime((2026, 11, 26, 13, 5, 9, 0, 0, -1))
    monkeypatch.setattr(moments, "time", lambda: now)
    assert clock(now) == "13:05:09"
    assert clock(time.mktime((2026, 11, 26, 0, 0, 0, 0, 0, -1))) == "00:00:00"
    for year, month, day in ((2026, 11, 25), (2025, 11, 26), (2026, 12, 26)):
        moment = time.mktime((year, month, day, 13, 5, 9, 0, 0, -1))
        assert clock(moment) == time.strftime("%d %b 13:05:09", time.localtime(moment))
