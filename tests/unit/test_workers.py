"""Tests of the workers that are threads: what they take, what they report, and when they end."""

from __future__ import annotations

import os
import sys
import threading
from queue import SimpleQueue
from time import monotonic
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from fmconsume.delivery import ACK, FAIL, NACK, Delivery, Outcome, Verdict
from fmconsume.engine.coroutines import CoroutineRunner
from fmconsume.engine.processor import Processor
from fmconsume.engine.stay import Stay
from fmconsume.engine.workers import Ports, ThreadWorker
from fmconsume.exceptions import Drop, HaltConsumer, Nack
from fmconsume.stopping import StopEvent

from .fakes import TIMEOUT, get_soon, make_delivery


def decode_body(delivery: Delivery) -> Any:
    """Make a message of a delivery."""
    return SimpleNamespace(body=delivery.body)


def make_ports(inbox: Any, post: Any, ends_on_error: bool = True) -> Ports:
    """Make the ports of a worker whose callback is no context manager."""
    stay = Stay(None, CoroutineRunner(), is_on_loop=False)
    return Ports(inbox, post, stay, StopEvent(), ends_on_error)


def work(
    callback: Callable[[Any], Any], *deliveries: Delivery, ends_on_error: bool = True
) -> list[Outcome]:
    """Let one worker work on the deliveries, in this thread."""
    inbox: SimpleQueue[Delivery | None] = SimpleQueue()
    for delivery in deliveries or (make_delivery(),):
        inbox.put(delivery)
    inbox.put(None)
    outcomes: list[Outcome] = []
    processor = Processor(callback, decode_body)
    ThreadWorker(1, processor, make_ports(inbox, outcomes.append, ends_on_error)).run()
    return outcomes


@pytest.mark.parametrize(
    ("error", "verdicts"),
    [
        (None, [ACK, ACK]),
        (Nack(), [NACK, NACK]),
        (Drop(), [Verdict.DROP, Verdict.DROP]),
        (HaltConsumer(), [ACK]),
        (HaltConsumer(requeue=True), [NACK]),
        (RuntimeError("no"), [FAIL]),
        (SystemExit(0), [FAIL]),
    ],
    ids=repr,
)
def test_run_ends_on_error(error: BaseException | None, verdicts: list[Verdict]) -> None:
    """A worker of a consumer runs nothing after the outcome that ends the consumer."""

    def callback(message: Any) -> None:
        if error is not None:
            raise error

    assert [each.verdict for each in work(callback, make_delivery(), make_delivery())] == verdicts


def test_run_goes_on_after_error() -> None:
    """A worker that runs messages by hand goes on after an error."""

    def callback(message: Any) -> None:
        raise RuntimeError("no")

    outcomes = work(callback, make_delivery(tag=1), make_delivery(tag=2), ends_on_error=False)
    assert [each.verdict for each in outcomes] == [FAIL, FAIL]


def test_current_shows_what_runs() -> None:
    """While a callback runs, anybody may see on what; afterwards on nothing."""
    inbox: SimpleQueue[Delivery | None] = SimpleQueue()
    seen: list[Any] = []
    post: Callable[[Outcome], None] = lambda outcome: seen.append(worker.current)  # noqa: E731
    callback: Callable[[Any], None] = lambda message: seen.append(worker.current)  # noqa: E731
    worker = ThreadWorker(1, Processor(callback, decode_body), make_ports(inbox, post))
    delivery = make_delivery()
    inbox.put(delivery)
    inbox.put(None)
    worker.run()
    assert seen[0][0] is delivery
    assert seen[1] is None


def test_start_is_named_daemon() -> None:
    """A worker is a thread with a number, which does not keep the process."""
    inbox: SimpleQueue[Delivery | None] = SimpleQueue()
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    names: list[str] = []

    def callback(message: Any) -> None:
        thread = threading.current_thread()
        names.append(f"{thread.name} daemon={thread.daemon}")

    worker = ThreadWorker(7, Processor(callback, decode_body), make_ports(inbox, outcomes.put))
    worker.start()
    inbox.put(make_delivery())
    assert get_soon(outcomes).verdict is ACK
    inbox.put(None)
    worker.join(TIMEOUT)
    assert not worker.is_alive()
    assert names == ["fmconsume-worker-7 daemon=True"]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_run_callback_forks() -> None:
    """A child that the callback forked ends where it would have reported; the parent reports."""
    statuses: list[int] = []

    def callback(message: Any) -> None:
        child = os.fork()
        if child:
            statuses.append(os.waitpid(child, 0)[1])

    parent = os.getpid()
    outcomes = work(callback)
    if os.getpid() != parent:
        os._exit(42)
    assert [os.WEXITSTATUS(status) for status in statuses] == [1]
    assert [outcome.verdict for outcome in outcomes] == [ACK]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_run_in_forked_child() -> None:
    """A worker belongs to the process that runs it, whichever has made it."""
    inbox: SimpleQueue[Delivery | None] = SimpleQueue()
    inbox.put(make_delivery())
    inbox.put(None)
    outcomes: list[Outcome] = []
    worker = ThreadWorker(1, Processor(repr, decode_body), make_ports(inbox, outcomes.append))
    child = os.fork()
    if not child:
        try:
            worker.run()
        finally:
            os._exit(41 + len(outcomes))
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 42


def test_callbacks_compute_at_once() -> None:
    """Each of two callbacks sees the other run while neither waits; without a GIL at once."""
    begun: set[bytes] = set()
    deadline = monotonic() + TIMEOUT

    def callback(message: Any) -> None:
        begun.add(message.body)
        while len(begun) < 2:
            if monotonic() > deadline:
                raise Drop

    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    ports = make_ports(SimpleQueue(), outcomes.put)
    workers = [ThreadWorker(n, Processor(callback, decode_body), ports) for n in (1, 2)]
    for body in (b"1", b"2"):
        ports.inbox.put(make_delivery(body=body))
    usual = sys.getswitchinterval()
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        sys.setswitchinterval(2 * TIMEOUT)  # With a GIL the first would keep it.
    try:
        for worker in workers:
            worker.start()
            ports.inbox.put(None)
        assert [get_soon(outcomes).verdict for _ in workers] == [ACK, ACK]
    finally:
        sys.setswitchinterval(usual)
