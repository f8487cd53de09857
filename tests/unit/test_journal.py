"""Tests of log lines for the journal."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.context import current
from fmconsume.service.journal import Formatter, JsonFormatter, PlainFormatter

from .fakes import make_delivery

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"


def make_record(level: int, text: str = "text") -> logging.LogRecord:
    """Make a record as a logger would."""
    return logging.LogRecord("fmconsume.engine", level, __file__, 1, text, None, None)


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let standard error be the journal's."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    ("level", "priority"),
    [(-1, 7), (1, 7), (10, 7), (20, 6), (25, 6), (30, 4), (40, 3), (50, 2), (99, 2)],
)
def test_format_priority(level: int, priority: int) -> None:
    """Each line starts with the syslog priority of its level."""
    assert Formatter().format(make_record(level)) == f"<{priority}>text"


@pytest.mark.usefixtures("journal")
def test_format_every_line() -> None:
    """The journal makes an entry of each line, so each has the priority."""
    text = Formatter("[%(levelname)s] %(message)s").format(make_record(logging.ERROR, "a\nb\n<0>c"))
    assert text.splitlines() == ["<3>[ERROR] a", "<3>  b", "<3>  <0>c"]


@pytest.mark.parametrize("stream", [None, "", "8:1", "soup"])
def test_format_not_the_journal(monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    """A record has its time where standard error goes elsewhere, as it may within a service."""
    if stream is not None:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    text = Formatter().format(make_record(logging.ERROR, "a\nb"))
    assert re.fullmatch(rf"{TIME} a\n  b", text)


@pytest.fixture
def _in_nepal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the local time be 5:45 h ahead of Greenwich's."""
    monkeypatch.setenv("TZ", "XXX-5:45")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_in_nepal")
def test_format_time() -> None:
    """The time is that of the record, local and with its zone."""
    record = make_record(logging.INFO)
    record.created = 86399.9996
    assert Formatter().format(record) == "1970-01-02T05:44:59.999+05:45 text"


def test_format_own_time() -> None:
    """A format that has the time gets no second one."""
    record = make_record(logging.INFO)
    assert Formatter("%(asctime)s: %(message)s", "now").format(record) == "now: text"


@pytest.mark.usefixtures("journal")
def test_format_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without standard error logs as elsewhere."""

    def fail(descriptor: int) -> None:
        raise OSError(9, "Bad file descriptor")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        formatter = Formatter()
    assert formatter.format(make_record(logging.ERROR)).endswith(" text")


# -- records that mean no good


@given(text=st.text(), error=st.none() | st.text())
def test_format_one_record(text: str, error: str | None) -> None:
    """Whatever is logged, no line of it begins as a record does, and none commands a terminal."""
    try:
        raise ValueError(error)
    except ValueError:
        exc_info = sys.exc_info() if error is not None else None
    record = logging.LogRecord("a", logging.ERROR, "b.py", 1, "%s", (text,), exc_info)
    first, *rest = PlainFormatter("[%(levelname)s] %(message)s").format(record).split("\n")
    assert first.startswith("[ERROR] ")
    assert all(line.startswith("  ") for line in rest)
    shown = {char for line in (first, *rest) for char in line if not char.isprintable()}
    assert shown <= set("\t\xa0\u2009\u202f\u3000\u200c\u200d")


@pytest.mark.usefixtures("journal")
def test_format_nul() -> None:
    """The journal also makes an entry of what follows a NUL, which therefore does not get there."""
    assert Formatter().format(make_record(logging.INFO, "a\x00<0>b")) == r"<6>a\x00<0>b"


class Speechless:
    """Cannot be written."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("msg", "args", "exc_info", "reason"),
    [
        ("%d", ("x",), None, "TypeError: "),
        ("%s %s", ("x",), None, "TypeError: not enough arguments"),
        ("%(a)s", ({"b": 1},), None, "KeyError: 'a'"),
        ("%s", (Speechless(),), None, "RuntimeError: no text"),
        (Speechless(), (), None, "RuntimeError: no text"),
        ("text", (), "no error", ""),
    ],
)
def test_format_never_raises(msg: Any, args: Any, exc_info: Any, reason: str) -> None:
    """A record that cannot be written is a line that says where it came from, and why."""
    record = logging.LogRecord("a", logging.ERROR, "b.py", 7, msg, args, exc_info)
    text = PlainFormatter().format(record)
    assert text.startswith("a log record of a")
    assert f", b.py line 7, cannot be written: {reason}" in text
    assert "\n" not in text


# -- JSON


def make_failure(text: str) -> Any:
    """Make what a record holds of an exception."""
    try:
        raise ValueError(text)
    except ValueError:
        return sys.exc_info()


def test_json_fields() -> None:
    """A record is an object with its time, level, logger and message."""
    record = make_record(logging.WARNING, "caf\xe9")
    entry = json.loads(JsonFormatter("[%(name)s] %(message)s").format(record))
    assert re.fullmatch(TIME, entry.pop("time"))
    assert entry == {"level": "WARNING", "logger": "fmconsume.engine", "message": "caf\xe9"}


def test_json_exception() -> None:
    """The traceback and the stack are texts."""
    record = make_record(logging.ERROR)
    record.exc_info, record.stack_info = make_failure("no"), "Stack (most recent call last):"
    entry = json.loads(JsonFormatter().format(record))
    assert entry["exception"].startswith("Traceback (most recent call last):\n  File ")
    assert entry["exception"].endswith("\nValueError: no")
    assert entry["stack"] == "Stack (most recent call last):"


def test_json_message() -> None:
    """Where a callback runs, its message has fields of their own, without control characters."""
    token = current.set((make_delivery(message_id="a\nb", queue="fruit", routing_key="x.y"), 3))
    try:
        entry = json.loads(JsonFormatter().format(make_record(logging.INFO)))
    finally:
        current.reset(token)
    assert {
        name: entry[name] for name in ("message_id", "queue", "topic", "attempt", "worker")
    } == {
        "message_id": r"a\nb",
        "queue": "fruit",
        "topic": "x.y",
        "attempt": 1,
        "worker": 3,
    }


def test_json_extra() -> None:
    """What was given with a record is there, as text where JSON lacks the type, and forges none."""
    record = make_record(logging.INFO)
    vars(record).update(n=1, ratio=float("nan"), seen={1}, level="high", time="never")
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["n"], entry["ratio"], entry["seen"]) == (1, "nan", "{1}")
    assert entry["level"] == "INFO"
    assert entry["time"] != "never"


@given(text=st.text(), error=st.none() | st.text())
def test_json_one_line(text: str, error: str | None) -> None:
    """Whatever is logged, a record is one line, and none commands a terminal."""
    exc_info = make_failure(error) if error is not None else None
    record = logging.LogRecord("a", logging.ERROR, "b.py", 1, "%s", (text,), exc_info)
    line = JsonFormatter().format(record)
    assert line.isprintable()
    assert json.loads(line)["message"] == text


@pytest.mark.usefixtures("journal")
def test_json_journal() -> None:
    """The journal gets the priority, which it takes away."""
    text = JsonFormatter().format(make_record(logging.ERROR, "a\nb"))
    assert text.startswith("<3>{")
    assert json.loads(text[3:])["message"] == "a\nb"


@pytest.mark.parametrize(("msg", "extra"), [(Speechless(), 1), ("text", Speechless())])
def test_json_never_raises(msg: Any, extra: Any) -> None:
    """A record that cannot be written is an object that says where it came from, and why."""
    record = logging.LogRecord("a", logging.ERROR, "b.py", 7, msg, None, None)
    record.extra = extra
    entry = json.loads(JsonFormatter().format(record))
    assert entry["message"].startswith("a log record of a")
    assert entry["message"].endswith(", b.py line 7, cannot be written: RuntimeError: no text")
