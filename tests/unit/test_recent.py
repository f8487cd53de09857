"""Tests of the last warnings and errors."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from fmconsume.service.recent import Recent


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """Our logger and the root, without handlers, as in a program that configures no logging."""
    loggers = [logging.getLogger(), logging.getLogger("fmconsume")]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers.clear()
    yield loggers[1]
    for logger, handlers, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate


@pytest.mark.parametrize("propagate", [True, False])
def test_recent_sees_everything_once(ours: logging.Logger, propagate: bool) -> None:
    """Warnings of the whole program are noted once, however our logger is configured."""
    ours.propagate = propagate
    ours.addHandler(logging.NullHandler())
    with Recent() as recent:
        logging.getLogger("fmconsume.engine").warning("from us: %s", 1)
        logging.getLogger("their.callback").error("from them")
        logging.getLogger("their.callback").info("no matter")
    logging.getLogger("fmconsume.engine").warning("too late")
    assert [(entry.level, entry.text) for entry in recent.entries] == [
        ("WARNING", "from us: 1"),
        ("ERROR", "from them"),
    ]


def test_recent_takes_nothing_away(ours: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python prints while no logging is configured, it prints still."""
    stderr = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
        patch.setattr("sys.stderr", stderr)
        with Recent() as recent:
            ours.warning("look")
        assert logging.getLogger().handlers == []
    assert stderr.getvalue() == "look\n"
    assert len(recent.entries) == 1


def test_recent_is_bounded(ours: logging.Logger) -> None:
    """Only the last entries are kept, and of a long one the beginning."""
    ours.addHandler(logging.NullHandler())
    with Recent() as recent:
        for number in range(30):
            ours.error("%d %s", number, "x" * 10_000)
        for _ in range(30):
            ours.error("again")
    assert len(recent._known) == 20
    assert [entry.text.split()[0] for entry in recent.entries] == [
        *(str(n) for n in range(11, 30)),
        "again",
    ]
    assert {len(entry.text) for entry in recent.entries[:-1]} == {4000}


def test_recent_survives_a_bad_record(
    ours: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that cannot be written is noted as such, also where nobody can be told."""
    ours.addHandler(logging.NullHandler())
    ours.propagate = False  # pytest's own handler would raise.
    monkeypatch.setattr("sys.stderr", io.StringIO())
    sys.stderr.close()
    with Recent() as recent:
        ours.error("%d", "no number")
    (entry,) = recent.entries
    assert entry.text.startswith("a log record of fmconsume (%d), ")


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        (["no", "no", "no"], [("no", 3)]),
        # The one that came last is the last one.
        (["no", "yes", "no"], [("yes", 1), ("no", 2)]),
        (
            [
                "not consuming since 02:13:05 (1 attempt), next at 02:13:07: refused",
                "not consuming since 02:13:05 (12 attempts), next at 02:31:07: refused",
            ],
            [("not consuming since 02:13:05 (12 attempts), next at 02:31:07: refused", 2)],
        ),
        (
            ["stuck: it runs for 60 s", "stuck: it runs for 61.5 s"],
            [("stuck: it runs for 61.5 s", 2)],
        ),
        (["message 1 set aside", "message 2 set aside"], None),
        (["refused at port 1", "refused at port 2"], None),
    ],
)
def test_recent_counts(
    ours: logging.Logger, texts: list[str], kept: list[tuple[str, int]] | None
) -> None:
    """What is said again, at another time, is counted; what tells of something else is not."""
    ours.addHandler(logging.NullHandler())
    with Recent() as recent:
        for text in texts:
            ours.warning(text)
    found = [(entry.text, entry.times) for entry in recent.entries]
    assert found == (kept or [(text, 1) for text in texts])


def test_recent_times(ours: logging.Logger) -> None:
    """An entry tells when it came first and when it came last; a level of its own is another."""
    ours.addHandler(logging.NullHandler())
    with Recent() as recent:
        for moment, level in ((1.0, "WARNING"), (2.0, "ERROR"), (3.0, "WARNING")):
            record = logging.LogRecord("x", getattr(logging, level), "", 1, "no", (), None)
            record.created = moment
            ours.handle(record)
    found = [(entry.created, entry.last, entry.level, entry.times) for entry in recent.entries]
    assert found == [(2.0, 2.0, "ERROR", 1), (1.0, 3.0, "WARNING", 2)]
