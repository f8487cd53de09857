"""Tests of what an exception of a callback leads to."""

from __future__ import annotations

import pytest

from fmconsume.delivery import DROP, FAIL, NACK, Verdict
from fmconsume.engine.failures import HALT, FailurePolicy
from fmconsume.exceptions import Drop, Nack

POLICY = FailurePolicy(DROP, (ConnectionError,), (ValueError,), 3)


@pytest.mark.parametrize(
    ("policy", "exc", "verdict"),
    [
        (HALT, Nack(), NACK),
        (HALT, Drop(), DROP),
        (HALT, KeyError(), FAIL),
        (POLICY, Nack(), NACK),
        (POLICY, ConnectionResetError(), NACK),
        (POLICY, UnicodeError(), DROP),
        (POLICY, KeyError(), DROP),
        (POLICY._replace(on_exception=NACK), KeyError(), NACK),
        # Whoever says so wants an end.
        (POLICY, SystemExit(), FAIL),
        (POLICY, KeyboardInterrupt(), FAIL),
        (POLICY._replace(drop_on=(SystemExit,)), SystemExit(), DROP),
    ],
)
def test_judge(policy: FailurePolicy, exc: BaseException, verdict: Verdict) -> None:
    """Our own exceptions and those that are named go before what holds for all."""
    assert policy.judge(exc) is verdict


@pytest.mark.parametrize(("attempt", "is_last"), [(1, False), (2, False), (3, True), (4, True)])
def test_is_last(attempt: int, is_last: bool) -> None:
    """The last attempt is that with the greatest number, and any beyond."""
    assert POLICY.is_last(attempt) is is_last
    assert not HALT.is_last(attempt)


def test_describe() -> None:
    """The number of an attempt is told where it says something."""
    assert POLICY.describe(2) == ", attempt 2 of 3"
    assert (HALT.describe(1), HALT.describe(4)) == ("", ", attempt 4")
