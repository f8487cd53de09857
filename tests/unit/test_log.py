"""Tests of the log: whatever its handlers do, who logs goes on."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Barrier, Event, Thread, get_ident
from typing import Any, Callable

import pytest

from fmconsume import log
from tests.waiting import wait_until

from .fakes import TIMEOUT, wait_soon

NAME = "fmconsume.test_log"


@pytest.fixture(autouse=True)
def _new_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no stuck writer to other tests."""
    monkeypatch.setattr(log, "_writer", log._Writer())


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    """Let a handler have the lines."""
    logging.getLogger(NAME).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(NAME).removeHandler(handler)


class Handler(logging.Handler):
    """Does with each record what the test wants."""

    def __init__(self, action: Any) -> None:
        super().__init__()
        self.handle = action  # type: ignore[method-assign]


def test_info_is_a_usual_record(caplog: pytest.LogCaptureFixture) -> None:
    """A line is written when the call returns, as one of the thread and place that logged it."""
    caplog.set_level(logging.INFO)
    log.get_logger(NAME).info("%d apples", 3)
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == (NAME, "3 apples")
    assert (record.filename, record.thread) == ("test_log.py", get_ident())


def test_isEnabledFor_real_logger(caplog: pytest.LogCaptureFixture) -> None:
    """The level is that of the logger of the same name."""
    caplog.set_level(logging.ERROR, NAME)
    log.get_logger(NAME).warning("nothing that matters")
    assert not caplog.records


@pytest.mark.parametrize("error", [ValueError("closed"), SystemExit(3), RecursionError()])
def test_handler_fails(error: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    """What a handler raises reaches nobody, and the line is on standard error instead."""

    def fail(record: logging.LogRecord) -> None:
        raise error

    with handled_by(Handler(fail)):
        log.get_logger(NAME).warning("the queue is gone")
    assert "the queue is gone" in capfd.readouterr().err


def test_handler_fails_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does it where standard error is closed as well."""

    def fail(record: logging.LogRecord) -> None:
        raise ValueError("I/O operation on closed file")

    with open(os.devnull, "w") as closed:
        pass
    monkeypatch.setattr(sys, "stderr", closed)
    with handled_by(Handler(fail)):
        log.get_logger(NAME).warning("the queue is gone")


def test_filter_and_factory_fail(caplog: pytest.LogCaptureFixture) -> None:
    """A filter or a record factory that fails costs a line at most."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("user")

    logger, factory = logging.getLogger(NAME), logging.getLogRecordFactory()
    logger.addFilter(fail)
    logging.setLogRecordFactory(fail)
    try:
        log.get_logger(NAME).warning("one")
    finally:
        logging.setLogRecordFactory(factory)
        logger.removeFilter(fail)
    log.get_logger(NAME).warning("two")
    assert [record.getMessage() for record in caplog.records] == ["two"]


def test_handler_blocks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that blocks is waited for once and briefly; later all lines are there."""
    monkeypatch.setattr(log, "_PATIENCE", 0.01)
    entered, go_on, done = Event(), Event(), Event()

    def block(record: logging.LogRecord) -> None:
        entered.set()
        wait_soon(go_on)
        if record.getMessage() == "three":
            done.set()

    logger = log.get_logger(NAME)
    with handled_by(Handler(block)):
        logger.warning("one")
        wait_soon(entered)
        assert log.is_stuck()
        monkeypatch.setattr(log, "_PATIENCE", 1000.0)
        logger.warning("two")
        logger.warning("three")
        go_on.set()
        wait_soon(done)
    logger.warning("four")
    assert not log.is_stuck()
    assert [record.getMessage() for record in caplog.records] == ["one", "two", "three", "four"]


def test_handler_blocks_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a handler blocks, no more than so many lines wait."""
    monkeypatch.setattr(log, "_PATIENCE", 0.0)
    monkeypatch.setattr(log, "_MOST", 3)
    go_on = Event()
    with handled_by(Handler(lambda record: wait_soon(go_on))):
        for _ in range(10):
            log.get_logger(NAME).warning("again")
        assert log._writer._queue.qsize() <= 3
        go_on.set()
        wait_until(lambda: not log.is_stuck() and not log._writer._queue.qsize())


def test_no_thread(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where no thread can be started, the line is written all the same."""

    def fail(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(log.threading.Thread, "start", fail)
        log.get_logger(NAME).warning("one")
    log.get_logger(NAME).warning("two")
    assert [record.getMessage() for record in caplog.records] == ["one", "two"]


def test_forked_child() -> None:
    """A forked child writes with a thread of its own."""
    logger = log.get_logger(NAME)
    logger.warning("parent")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with handled_by(Handler(lambda record: os.write(writing, b"child"))):
            logger.warning("child")
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 100) == b"child"
    os.close(reading)
    assert os.waitpid(child, 0) == (child, 0)


def run_twice(function: Callable[..., None], *args: object) -> None:
    """Call a function on two threads at the same time."""
    both = [Thread(target=function, args=args) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(TIMEOUT)


def test_two_threads_log_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where two threads have started a writer each, one writer stays, and writes both lines."""
    barrier, start = Barrier(2), Thread.start
    writers: list[Thread] = []

    def start_together(thread: Thread) -> None:
        if thread.name == "fmconsume-log":
            writers.append(thread)
            barrier.wait(TIMEOUT)
        start(thread)

    monkeypatch.setattr(Thread, "start", start_together)
    run_twice(log.get_logger(NAME).warning, "hello")
    wait_until(lambda: [thread.is_alive() for thread in writers].count(True) == 1)
    assert (len(writers), caplog.messages) == (2, ["hello"] * 2)


def test_warn_once_two_threads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two threads that are to warn of the same name, one does."""
    monkeypatch.setattr(log, "_warned", {})
    barrier = Barrier(2)

    class Name(str):
        """Looked up by both threads before either of them stores it."""

        def __getitem__(self, key: Any) -> Name:
            return self

        def __hash__(self) -> int:
            barrier.wait(TIMEOUT)
            return super().__hash__()

    run_twice(log.warn_once, log.get_logger(NAME), "kind", Name("apple"), "%r is odd")
    assert caplog.messages == ["'apple' is odd"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (logging.NOTSET, logging.CRITICAL),
        (logging.INFO, logging.CRITICAL),
        (logging.ERROR, logging.CRITICAL),
        (logging.DEBUG, logging.DEBUG),
    ],
)
def test_quieten_pika(before: int, after: int) -> None:
    """pika is silent whatever its level, unless somebody wants all that it says."""
    logger = logging.getLogger("pika")
    usual = logger.level
    try:
        logger.setLevel(before)
        log.quieten_pika()
        assert logger.level == after
    finally:
        logger.setLevel(usual)
