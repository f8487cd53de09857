"""Tests of what HaltConsumer makes of its arguments."""

from __future__ import annotations

from typing import Any

import pytest

from fmconsume.exceptions import ExitCode, HaltConsumer


class Message:
    """A message, as real callbacks hand it to HaltConsumer."""

    def __str__(self) -> str:
        return "Topic: fruit"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        ((), 0, "halted with exit code 0"),
        ((None,), 0, "halted with exit code 0"),
        ((3,), 3, "halted with exit code 3"),
        ((3, "enough"), 3, "enough"),
        ((True,), 1, "halted with exit code True"),
        (("the disk is full",), 1, "the disk is full"),
        (("",), 1, "halted with exit code 1"),
        (("text", "reason"), 1, "reason"),
        ((2.5,), 1, "2.5"),
        ((Message(),), 1, "Topic: fruit"),
        ((3, Message()), 3, "Topic: fruit"),
    ],
)
def test_halt_consumer_arguments(arguments: Any, exit_code: int, text: str) -> None:
    """The exit code is read as sys.exit() reads its argument: what is no number is a reason."""
    error = HaltConsumer(*arguments)
    assert (error.exit_code, str(error)) == (exit_code, text)
    assert error.requeue is False


def test_halt_consumer_subclass() -> None:
    """A subclass that does not call the constructor halts with 0."""

    class Enough(HaltConsumer):
        def __init__(self) -> None:
            pass

    assert (Enough().exit_code, Enough().requeue) == (0, False)


def test_exit_code_shows_its_number() -> None:
    """An exit code prints as a number on every Python."""
    assert f"{ExitCode.BODIES} {ExitCode.USAGE:>3d} {ExitCode.OK!s}" == "16   2 0"
