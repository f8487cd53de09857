"""Tests of the supervisor with a broker that obeys: sessions that open, break and end on demand."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, Callable

import pika
import pytest

from fmconsume.broker.addresses import Address
from fmconsume.broker.backoff import Backoff
from fmconsume.broker.errors import SessionLost
from fmconsume.broker.topology import Topology
from fmconsume.delivery import ACK, DROP, FAIL, NACK, REJECT, Delivery, Frame, Outcome, Verdict
from fmconsume.engine import drain as drain_module
from fmconsume.engine import mailbox as mailbox_module
from fmconsume.engine import outage as outage_module
from fmconsume.engine import prefetch as prefetch_module
from fmconsume.engine import supervisor as supervisor_module
from fmconsume.engine.pool import make_pool
from fmconsume.engine.processor import Processor
from fmconsume.engine.states import End, Observer, Phase, State
from fmconsume.engine.supervisor import Options, Supervisor
from fmconsume.exceptions import (
    BadDeclaration,
    ConnectionException,
    ConsumerCanceled,
    Drop,
    ExitCode,
    HaltConsumer,
    Nack,
    PermissionException,
    ValidationError,
)
from fmconsume.moments import clock
from tests.waiting import wait_until

from .fakes import PLAIN, TIMEOUT, get_soon, make_delivery, wait_soon
from .memory_broker import MemoryBroker, MemorySession

SINGLE = PLAIN._replace(queues={"fruit": {"arguments": {"x-single-active-consumer": True}}})
QUORUM = PLAIN._replace(queues={"fruit": {"arguments": {"x-queue-type": "quorum"}}})
FAR, NEAR = (
    Address("far", pika.URLParameters),
    Address("near", pika.URLParameters),
)


class Bench:
    """A supervisor at work, and everything around it that is pretended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker = MemoryBroker()
        self.ends: SimpleQueue[End] = SimpleQueue()
        #: What the workers have posted.
        self.posted: SimpleQueue[Outcome] = SimpleQueue()
        self.supervisor: Supervisor
        # A supervisor that overlooks something shall not find it at its next turn.
        monkeypatch.setattr(supervisor_module, "_SLEEP", 1000.0)
        monkeypatch.setattr(Observer, "interval", 1000.0)

    def start(
        self,
        callback: Callable[[Any], Any] = lambda message: None,
        *,
        addresses: tuple[Address, ...] = (NEAR,),
        topology: Topology = PLAIN,
        decode: Callable[[Delivery], Any] = lambda delivery: delivery.properties.message_id,
        delay: float = 0.0,
        workers: int = 1,
        ahead: int = 10,
        observers: tuple[Observer, ...] = (),
        **options: Any,
    ) -> MemorySession:
        """Start, and give the first session; less than ten `ahead` make it start slowly."""
        self.supervisor = Supervisor(
            addresses=addresses,
            topology=topology,
            options=Options(workers=ahead, **options),
            open_session=self.broker.open_session,
            make_pool=lambda post: make_pool(
                Processor(callback, decode), workers, partial(self._post, post)
            ),
            report=self.ends.put,
            observers=observers,
            backoff=Backoff(uniform=lambda low, high: delay),
        )
        self.supervisor.start()
        return self.next_session()

    def _post(self, post: Callable[[Outcome], None], outcome: Outcome) -> None:
        post(outcome)
        self.posted.put(outcome)

    def next_session(self) -> MemorySession:
        """Give the session that is opened next."""
        return get_soon(self.broker.opened)

    def end(self) -> End:
        """Wait for the end."""
        return get_soon(self.ends)

    def stop(self) -> End:
        """Stop gracefully and wait for the end."""
        self.supervisor.stop()
        return self.end()

    def join(self) -> None:
        """Wait for all threads."""
        for thread in (self.supervisor, *self.supervisor.workers):
            thread.join(TIMEOUT)
            assert not thread.is_alive(), f"{thread.name} did not end"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Make a bench; whatever a test leaves running is told to end."""
    result = Bench(monkeypatch)
    yield result
    if hasattr(result, "supervisor"):
        result.supervisor.abandon(End(None, 0))
        result.supervisor.join(TIMEOUT)


class Gate:
    """A callback that stays inside until it is let out, by message id."""

    def __init__(self, *shut: str) -> None:
        self.shut = {name: Event() for name in shut}
        self.entered: SimpleQueue[str] = SimpleQueue()
        self.errors: dict[str, BaseException] = {}

    def __call__(self, message: str) -> None:
        self.entered.put(message)
        if message in self.shut:
            wait_soon(self.shut[message])
        if message in self.errors:
            raise self.errors[message]

    def let_out(self, name: str) -> None:
        """Let the callback go on."""
        self.shut[name].set()


# -- settling -----------------------------------------------------------------


def test_run_acknowledges(bench: Bench) -> None:
    """What callbacks return from is acknowledged; the session is closed once at the end."""
    session = bench.start()
    session.deliver_soon("apple")
    session.expect(Frame(1, ACK, False))
    assert bench.stop() == End(None, ExitCode.OK)
    session.expect("cancel", "close")
    assert session.closed == 1
    assert bench.supervisor.stats.acknowledged == 1
    bench.join()


def test_run_settles_in_few_frames(bench: Bench) -> None:
    """Outcomes that wait together share a frame."""
    gate = Gate("apple", "pear", "plum")
    session = bench.start(gate, workers=3)
    session.deliver_soon("apple", "pear", "plum")
    assert {get_soon(gate.entered) for _ in range(3)} == {"apple", "pear", "plum"}
    # While the supervisor is busy, all three outcomes reach its mailbox.
    busy, go_on = Event(), Event()
    bench.supervisor.mailbox.post(lambda: (busy.set(), wait_soon(go_on))[0])
    wait_soon(busy)
    for name in gate.shut:
        gate.let_out(name)
    for _ in gate.shut:
        get_soon(bench.posted)
    go_on.set()
    session.expect(Frame(3, ACK, True))


def test_run_lets_quick_callbacks_finish(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame acknowledges all that the workers do while the supervisor waits for them."""
    # Only the workers can end the waiting.
    monkeypatch.setattr(mailbox_module, "_LINGER", 2 * TIMEOUT)

    def callback(message: Any) -> None:
        while not bench.supervisor.mailbox.is_lingering:
            pass

    names = [f"plum {number}" for number in range(20)]
    session = bench.start(callback)
    session.deliver_soon(*names)
    session.expect(Frame(20, ACK, True))


def test_run_settles_with_the_first_what_follows_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that came ahead of others is acknowledged in one frame with them."""
    monkeypatch.setattr(mailbox_module, "_LINGER", 2 * TIMEOUT)

    def callback(message: Any) -> None:
        while not bench.supervisor.mailbox.is_lingering:
            pass
        if message == "apple":
            session.deliver_soon("pear", "plum")

    session = bench.start(callback)
    session.deliver_soon("apple")
    session.expect(Frame(3, ACK, True))


def test_run_slow_callback_delays_nothing(bench: Bench) -> None:
    """What is finished is acknowledged although more wait for a worker that is busy."""
    gate = Gate("pear")
    session = bench.start(gate)
    session.deliver_soon("apple", "pear", "plum")
    session.expect(Frame(1, ACK, False))
    gate.let_out("pear")


def test_run_hands_out_together(bench: Bench) -> None:
    """The workers get nothing before all that has come is there."""
    gate = Gate()
    session = bench.start(gate)
    found: SimpleQueue[int] = SimpleQueue()

    def deliver_and_look() -> None:
        session.deliver(make_delivery(1, 1, message_id="apple"))
        found.put(bench.supervisor._intake.inbox.qsize() + gate.entered.qsize())

    session.events.put(deliver_and_look)
    assert get_soon(found) == 0
    assert get_soon(gate.entered) == "apple"


@pytest.mark.parametrize(
    ("error", "verdict", "counter"), [(Drop, DROP, "dropped"), (Nack, NACK, "requeued")]
)
def test_run_other_verdicts(bench: Bench, error: Any, verdict: Verdict, counter: str) -> None:
    """Drop and Nack are settled as such, and counted."""
    gate = Gate()
    gate.errors["apple"] = error
    session = bench.start(gate, nack_initial=0)
    session.deliver_soon("apple", "pear")
    frames = {get_soon(session.calls) for _ in range(2)}
    assert frames == {Frame(1, verdict, False), Frame(2, ACK, False)}
    bench.stop()
    assert getattr(bench.supervisor.stats, counter) == 1


def test_run_message_invalid(bench: Bench) -> None:
    """A message that does not decode is rejected, and the next one runs."""

    def decode(delivery: Delivery) -> Any:
        if delivery.tag == 1:
            raise ValidationError("no")

    session = bench.start(decode=decode)
    session.deliver_soon("apple", "pear")
    session.expect(Frame(1, REJECT, False), Frame(2, ACK, False))
    bench.stop()
    assert bench.supervisor.stats.rejected == 1


# -- how it ends --------------------------------------------------------------


def test_stop_returns_prefetched(bench: Bench) -> None:
    """A stop cancels, requeues what did not run, waits for what runs, and settles it."""
    gate = Gate("apple")
    session = bench.start(gate)
    session.deliver_soon("apple", "pear", "plum")
    assert get_soon(gate.entered) == "apple"
    bench.supervisor.stop()
    session.expect("cancel")
    gate.let_out("apple")
    assert bench.end() == End(None, ExitCode.OK)
    session.expect(Frame(2, NACK, False), Frame(3, NACK, False), Frame(1, ACK, False), "close")
    bench.join()
    assert gate.entered.empty()
    assert bench.supervisor.stats.requeued == 2


def test_stop_while_connecting(bench: Bench) -> None:
    """A stop does not wait for the network; the session is closed once it is open after all."""
    go_on, closed = Event(), Event()

    def prepare(session: MemorySession) -> None:
        session.on_connect = lambda: wait_soon(go_on)
        session.discard = closed.set  # type: ignore[method-assign]

    bench.broker.prepare = prepare
    bench.start()
    assert bench.stop() == End(None, ExitCode.OK)
    bench.join()
    assert not closed.is_set()
    go_on.set()
    wait_soon(closed)


def test_stop_while_connecting_tries_no_other(bench: Bench) -> None:
    """A stop while one address is tried leaves the others alone."""
    go_on = Event()
    bench.broker.prepare = lambda session: setattr(session, "on_connect", lambda: wait_soon(go_on))
    bench.start(addresses=(FAR, NEAR))
    bench.stop()
    go_on.set()
    assert [session.address.name for session in bench.broker.sessions] == ["far"]


def test_stop_while_waiting_to_reconnect(bench: Bench) -> None:
    """A stop interrupts the wait before the next connection."""
    session = bench.start(delay=1000.0)
    session.lose_soon()
    session.expect("discard")
    assert bench.stop() == End(None, ExitCode.OK)
    assert len(bench.broker.sessions) == 1


def test_stop_while_disconnected_waits_for_callback(bench: Bench) -> None:
    """A callback that outlived its session still gets to finish before the end."""
    gate = Gate("apple")
    session = bench.start(gate, delay=1000.0)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    session.lose_soon()
    session.expect("discard")
    bench.supervisor.stop()
    with pytest.raises(Empty):
        bench.ends.get(timeout=0.05)
    gate.let_out("apple")
    assert bench.end() == End(None, ExitCode.OK)
    assert bench.supervisor.stats.acknowledged == 1


def test_stop_session_lost_meanwhile(bench: Bench) -> None:
    """A line that is cut while stopping does not start anything anew."""
    gate = Gate("apple")
    session = bench.start(gate)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    bench.supervisor.stop()
    session.expect("cancel")
    session.lose_soon()
    session.expect("discard")
    gate.let_out("apple")
    assert bench.end() == End(None, ExitCode.OK)
    assert len(bench.broker.sessions) == 1


def test_abandon_callback_running(bench: Bench) -> None:
    """An abandonment waits for no callback, and brings its own end."""
    gate = Gate("apple")
    session = bench.start(gate)
    session.deliver_soon("apple", "pear")
    get_soon(gate.entered)
    bench.supervisor.stop()
    session.expect("cancel")
    end = End(KeyboardInterrupt("SIGINT"), 130)
    bench.supervisor.abandon(end)
    assert bench.end() is end
    session.expect(Frame(2, NACK, False), "close")
    assert bench.supervisor.stats.abandoned == 1
    gate.let_out("apple")
    bench.join()


def test_abandon_while_disconnected(bench: Bench) -> None:
    """An abandonment does not wait for a callback that outlived its session either."""
    gate = Gate("apple")
    session = bench.start(gate, delay=1000.0)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    session.lose_soon()
    session.expect("discard")
    end = End(KeyboardInterrupt("SIGINT"), 130)
    bench.supervisor.abandon(end)
    assert bench.end() is end
    gate.let_out("apple")
    bench.join()


def test_run_callback_fails(bench: Bench) -> None:
    """A failing callback ends the consumer; its message and the prefetched ones are requeued."""
    gate, error = Gate("apple"), RuntimeError("no")
    gate.errors["apple"] = error
    session = bench.start(gate)
    session.deliver_soon("apple", "pear")
    get_soon(gate.entered)
    gate.let_out("apple")
    assert bench.end() == End(error, ExitCode.CALLBACK)
    session.expect("cancel", Frame(1, FAIL, False), Frame(2, NACK, False), "close")
    assert gate.entered.empty()
    assert bench.supervisor.stats.failed == 1
    bench.join()


@pytest.mark.parametrize(("requeue", "verdict"), [(False, ACK), (True, NACK)])
def test_run_callback_halts(bench: Bench, requeue: bool, verdict: Verdict) -> None:
    """HaltConsumer ends the consumer with its own exit code, its message settled as it says."""
    gate, error = Gate(), HaltConsumer(7, requeue=requeue)
    gate.errors["apple"] = error
    session = bench.start(gate)
    session.deliver_soon("apple")
    assert bench.end() == End(error, 7)
    session.expect("cancel", Frame(1, verdict, False), "close")


def test_run_first_error_wins(bench: Bench) -> None:
    """Of several errors the first is the one that counts."""
    gate = Gate("apple", "pear")
    gate.errors = {"apple": RuntimeError("first"), "pear": HaltConsumer(7)}
    session = bench.start(gate, workers=2)
    session.deliver_soon("apple", "pear")
    assert {get_soon(gate.entered), get_soon(gate.entered)} == {"apple", "pear"}
    gate.let_out("apple")
    session.expect("cancel")
    gate.let_out("pear")
    assert bench.end() == End(gate.errors["apple"], ExitCode.CALLBACK)
    frames = {get_soon(session.calls), get_soon(session.calls)}
    assert frames == {Frame(1, FAIL, False), Frame(2, ACK, False)}
    session.expect("close")


def test_run_error_after_stop(bench: Bench) -> None:
    """A callback that fails after a stop does not change the reason."""
    gate = Gate("apple")
    gate.errors["apple"] = RuntimeError("late")
    session = bench.start(gate)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    bench.supervisor.stop()
    session.expect("cancel")
    gate.let_out("apple")
    assert bench.end() == End(None, ExitCode.OK)
    session.expect(Frame(1, FAIL, False), "close")


def test_run_cancelled_queue_gone(bench: Bench) -> None:
    """A cancel by the broker ends the consumer where the queue is gone; what runs is settled."""
    gate, gone = Gate("apple"), ConsumerCanceled("the queue is gone")
    session = bench.start(gate)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    session.events.put(lambda: setattr(session, "cancel_reason", gone))
    session.expect("cancel")
    gate.let_out("apple")
    assert bench.end() == End(gone, ExitCode.CANCELLED)
    session.expect(Frame(1, ACK, False), "close")


def test_run_cancelled_queue_there(bench: Bench) -> None:
    """Where the queue is there, a cancel costs the session, and what runs adopts its redelivery."""
    gate = Gate("apple")
    session = bench.start(gate)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    session.events.put(lambda: setattr(session, "cancel_reason", SessionLost("cancelled")))
    session.expect("discard")
    second = bench.next_session()
    second.deliver_soon("apple", redelivered=True)
    gate.let_out("apple")
    second.expect(Frame(1, ACK, False))
    assert gate.entered.empty()


def test_run_single_active_consumer(bench: Bench) -> None:
    """With a single active consumer a stop neither cancels nor returns anything.

    What came meanwhile does not run, and what was to be returned is left to the closing channel.
    """
    gate = Gate("apple", "pear")
    gate.errors["pear"] = Nack()
    session = bench.start(gate, topology=SINGLE, workers=2)
    session.deliver_soon("apple", "pear", "plum")
    assert {get_soon(gate.entered), get_soon(gate.entered)} == {"apple", "pear"}
    stopped = Event()
    bench.supervisor.stop()
    bench.supervisor.mailbox.post(stopped.set)
    wait_soon(stopped)
    session.deliver_soon("quince")
    gate.let_out("pear")
    gate.let_out("apple")
    assert bench.end() == End(None, ExitCode.OK)
    session.expect(Frame(1, ACK, False), "leave", "close")
    assert gate.entered.empty()
    assert bench.supervisor.stats.requeued == 3


def test_run_no_thread_to_reconnect(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started to connect with, it is tried again."""
    session = bench.start()
    failing = [RuntimeError("can't start new thread")]
    start = supervisor_module.SessionOpener.start

    def start_or_fail(opener: Any) -> None:
        if failing:
            raise failing.pop()
        start(opener)

    monkeypatch.setattr(supervisor_module.SessionOpener, "start", start_or_fail)
    session.lose_soon()
    second = bench.next_session()
    assert not failing
    second.deliver_soon("apple")
    second.expect(Frame(1, ACK, False))


class Broken(logging.Handler):
    """A log handler that fails in a way that logging does not catch."""

    def handle(self, record: logging.LogRecord) -> Any:
        raise ValueError("I/O operation on closed file")


@pytest.fixture
def broken_log() -> Iterator[None]:
    """Let every line of the log fail."""
    handler, logger = Broken(), logging.getLogger("fmconsume")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.mark.usefixtures("broken_log")
def test_run_log_fails(bench: Bench) -> None:
    """No log handler that fails can end the consumer, nor keep its end from being told."""
    session = bench.start()
    session.lose_soon()
    second = bench.next_session()
    second.deliver_soon("apple")
    second.expect(Frame(1, ACK, False))
    assert bench.stop() == End(None, ExitCode.OK)


@pytest.mark.usefixtures("broken_log")
@pytest.mark.parametrize("place", ["on_connect", "wait"])
def test_run_supervisor_and_log_fail(bench: Bench, place: str) -> None:
    """A failure of the supervisor itself is reported although nothing can be logged."""
    error = KeyError("a bug")

    def fail(*args: Any) -> None:
        raise error

    bench.broker.prepare = lambda session: setattr(session, place, fail)
    bench.start()
    assert bench.end() == End(error, ExitCode.UNEXPECTED)


def test_run_observer_fails_at_the_end(bench: Bench) -> None:
    """The end is reported although an observer fails."""

    def fail(state: State) -> None:
        if state.name is Phase.STOPPED:
            raise OSError("no space left on device")

    observer = Observer()
    observer.on_state = fail  # type: ignore[method-assign]
    session = bench.start(observers=(observer,))
    session.deliver_soon("apple")
    session.expect(Frame(1, ACK, False))
    assert bench.stop() == End(None, ExitCode.OK)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (BadDeclaration("queue", "fruit", "no"), ExitCode.DECLARATION),
        (PermissionException("queue", "fruit", "no"), ExitCode.PERMISSION),
        (ConnectionException(reason="no"), ExitCode.HANDSHAKE),
    ],
)
def test_run_refused(bench: Bench, error: Exception, exit_code: int) -> None:
    """A refusal ends the consumer, each with its exit code."""

    def refuse() -> None:
        raise error

    bench.broker.prepare = lambda session: setattr(session, "on_declare", refuse)
    session = bench.start()
    assert bench.end() == End(error, exit_code)
    session.expect("discard")
    bench.join()


@pytest.mark.parametrize("place", ["on_connect", "on_declare", "wait", "cancel"])
def test_run_supervisor_fails(bench: Bench, caplog: pytest.LogCaptureFixture, place: str) -> None:
    """A failure of the supervisor itself is reported, never swallowed; the session is closed."""
    error = KeyError("a bug")

    def fail(*args: Any) -> None:
        raise error

    bench.broker.prepare = lambda session: setattr(session, place, fail)
    session = bench.start()
    if place == "cancel":
        bench.supervisor.stop()
    assert bench.end() == End(error, ExitCode.UNEXPECTED)
    assert session.closed == (place != "on_connect")
    critical = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(critical) == 1
    assert critical[0].exc_info


def test_run_supervisor_fails_workers_end(bench: Bench) -> None:
    """After a failure of the supervisor no idle worker waits for ever."""

    def fail() -> None:
        raise KeyError("a bug")

    bench.broker.prepare = lambda session: setattr(session, "on_declare", fail)
    bench.start(workers=2)
    bench.end()
    for worker in bench.supervisor.workers:
        worker.join(1)
    assert not any(worker.is_alive() for worker in bench.supervisor.workers)


def test_run_logs_summary(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The last line of the log sums up."""
    caplog.set_level(logging.INFO)
    session = bench.start()
    session.deliver_soon("apple")
    session.expect(Frame(1, ACK, False))
    bench.stop()
    bench.join()
    last = caplog.records[-1].getMessage()
    assert last.startswith("stopped after ")
    assert "asked to stop" in last
    assert "received 1, acknowledged 1" in last
    assert bench.supervisor.state.name == "stopped"


# -- limit and drain ----------------------------------------------------------


def test_limit_reached(bench: Bench) -> None:
    """With a limit exactly so many messages run; the others go back unseen."""
    gate = Gate()
    session = bench.start(gate, limit=2)
    session.deliver_soon("apple", "pear", "plum", "quince")
    assert bench.end() == End(None, ExitCode.OK)
    frames = []
    while (call := get_soon(session.calls)) != "close":
        frames.append(call)
    settled = {frame.tag: frame.verdict for frame in frames if frame != "cancel"}
    assert {tag for tag, verdict in settled.items() if verdict is NACK} == {3, 4}
    assert [get_soon(gate.entered), get_soon(gate.entered)] == ["apple", "pear"]
    assert gate.entered.empty()
    assert bench.supervisor.stats.acknowledged == 2


def test_limit_session_lost(bench: Bench) -> None:
    """Messages that were handed out but not begun when a session died do not count."""
    gate = Gate("apple")
    session = bench.start(gate, limit=2)
    session.deliver_soon("apple", "pear", "plum")
    get_soon(gate.entered)
    session.lose_soon()
    second = bench.next_session()
    second.deliver_soon("apple", "pear", "plum", redelivered=True)
    gate.let_out("apple")
    assert get_soon(gate.entered) == "pear"
    assert bench.end() == End(None, ExitCode.OK)
    assert gate.entered.empty()


def test_drain_empty(bench: Bench) -> None:
    """Draining ends once the queues are empty and everything is settled, not before."""
    gate = Gate("apple")
    bench.broker.prepare = lambda session: setattr(session, "ready", 1)
    session = bench.start(gate, drain=True)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    session.ready = 0
    with pytest.raises(Empty):
        bench.ends.get(timeout=0.3)
    gate.let_out("apple")
    assert bench.end() == End(None, ExitCode.OK)
    session.expect(Frame(1, ACK, False), "cancel", "close")


def test_drain_delivery_at_last_look(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while the empty queues are looked at runs, and at once."""
    monkeypatch.setattr(supervisor_module, "_DRAIN_SLEEP", 1000.0)
    gate = Gate()

    def prepare(session: MemorySession) -> None:
        def deplete() -> dict[str, int]:
            if not session.tag:
                session.deliver_soon("apple")
            return {"fruit": 0}

        session.depths = deplete  # type: ignore[method-assign]

    bench.broker.prepare = prepare
    session = bench.start(gate, drain=True)
    session.wake()
    assert get_soon(gate.entered) == "apple"
    assert bench.end() == End(None, ExitCode.OK)
    session.expect(Frame(1, ACK, False), "cancel", "close")


def test_drain_returned(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A drain does not wait for what was returned once; it goes on beside a full prefetch."""
    names = [f"apple {number}" for number in range(11)]

    def callback(message: Any) -> None:
        if message != "pear":
            raise Nack

    session = bench.start(callback, drain=True, nack_initial=0.0)
    session.ready = 1
    session.deliver_soon(*names[:10])
    session.expect("consume again 10")
    session.deliver_soon(names[10], "pear")
    session.expect(Frame(12, ACK, False))
    session.ready = 0
    session.wake()
    assert bench.end() == End(None, ExitCode.OK)
    session.expect("cancel", *(Frame(tag, NACK, False) for tag in range(1, 12)), "close")
    assert "drained; 11 messages that were returned are left" in caplog.text


def test_drain_returned_too_many(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain ends as one that failed where more is returned than it can hold."""
    monkeypatch.setattr(drain_module, "MOST_HELD", 10)
    monkeypatch.setattr(prefetch_module, "MOST_HELD", 0)
    session = bench.start(nack_all, drain=True)
    session.ready = 1000
    session.deliver_soon(*map(str, range(10)))
    end = bench.end()
    assert end.exit_code == ExitCode.TEMPORARY
    assert "no more can be held than the 10 messages" in str(end.error)
    session.expect("cancel")


# -- Nack backoff -------------------------------------------------------------


def nack_all(message: Any) -> None:
    """Return every message to its queue."""
    raise Nack


def settle_timer(session: MemorySession) -> tuple[float, Callable[[], None]]:
    """Wait until the supervisor has read its mailbox, and give the newest timer."""
    seen = Event()
    while not session.timers:
        session.events.put(seen.set)
        wait_soon(seen)
        seen.clear()
    return session.timers[-1]


def test_nack_held(bench: Bench) -> None:
    """A Nack is sent when its time has come, not before."""
    session = bench.start(nack_all, nack_initial=10.0)
    session.deliver_soon("apple")
    assert settle_timer(session)[0] == 10.0
    assert session.calls.empty()
    session.fire()
    session.expect(Frame(1, NACK, False))


def test_nack_held_longer_each_time(bench: Bench) -> None:
    """The same message is held twice as long each time, up to the maximum."""
    session = bench.start(nack_all, nack_initial=10.0, nack_maximum=35.0)
    for n, delay in enumerate([10.0, 20.0, 35.0]):
        session.deliver_soon("apple", redelivered=n > 0)
        assert settle_timer(session)[0] == delay
        session.fire()
        session.expect(Frame(n + 1, NACK, False))
        session.timers.clear()


def test_nack_held_until_stop(bench: Bench) -> None:
    """A stop sends every held Nack at once."""
    session = bench.start(nack_all, nack_initial=10.0)
    session.deliver_soon("apple")
    settle_timer(session)
    bench.stop()
    session.expect("cancel", Frame(1, NACK, False), "close")


def test_nack_held_session_lost(bench: Bench) -> None:
    """A held Nack is forgotten with its session: the broker has requeued the message itself."""
    session = bench.start(nack_all, nack_initial=10.0)
    session.deliver_soon("apple")
    settle_timer(session)
    session.lose_soon()
    second = bench.next_session()
    bench.stop()
    second.expect("cancel", "close")


@pytest.mark.parametrize(("count", "delay"), [(3, 80.0), (-5000, 10.0), ("3", 10.0), (True, 10.0)])
def test_nack_counted_by_the_broker(bench: Bench, count: Any, delay: float) -> None:
    """What a quorum queue counts makes the delay longer, never shorter than what is known here."""
    session = bench.start(nack_all, nack_initial=10.0, nack_maximum=100.0, topology=QUORUM)
    session.events.put(
        lambda: session.deliver(
            make_delivery(1, 1, redelivered=True, headers={"x-delivery-count": count})
        )
    )
    assert settle_timer(session)[0] == delay


def test_nack_counted_by_the_publisher(bench: Bench) -> None:
    """In a queue that does not count, the header is the publisher's and counts for nothing."""
    session = bench.start(nack_all, nack_initial=10.0, nack_maximum=100.0)
    headers = {"x-delivery-count": 3}
    session.events.put(lambda: session.deliver(make_delivery(redelivered=True, headers=headers)))
    assert settle_timer(session)[0] == 10.0


def test_nack_not_held(bench: Bench) -> None:
    """Without a delay a Nack is sent at once."""
    session = bench.start(nack_all, nack_initial=0.0)
    session.deliver_soon("apple")
    session.expect(Frame(1, NACK, False))
    assert not session.timers


# -- sessions that die ---------------------------------------------------------


def test_lost_running_callback_settles_redelivery(bench: Bench) -> None:
    """A callback that outlived its session runs once, and settles the redelivery."""
    gate = Gate("apple")
    session = bench.start(gate)
    session.deliver_soon("apple", "pear")
    get_soon(gate.entered)
    session.lose_soon()
    second = bench.next_session()
    second.deliver_soon("apple", redelivered=True)
    gate.let_out("apple")
    second.expect(Frame(1, ACK, False))
    bench.stop()
    assert gate.entered.empty()
    assert bench.supervisor.stats.deduplicated == 1
    assert bench.supervisor.stats.reconnections == 1
    assert session.closed == second.closed == 1


def test_lost_ack_is_repeated(bench: Bench) -> None:
    """A finished message that comes again gets its own verdict again, without a second run."""
    gate = Gate()
    gate.errors["apple"] = Drop()
    session = bench.start(gate)
    session.deliver_soon("apple")
    session.expect(Frame(1, DROP, False))
    get_soon(gate.entered)
    session.lose_soon()
    second = bench.next_session()
    second.deliver_soon("apple", redelivered=True)
    second.expect(Frame(1, DROP, False))
    assert gate.entered.empty()


def cut_while_settling(session: MemorySession) -> None:
    """Cut the line at the first frame."""

    def settle(frames: Any) -> None:
        session.is_lost = True
        session.check()

    session.settle = settle  # type: ignore[method-assign]


def test_lost_while_settling(bench: Bench) -> None:
    """A message is finished, and counted, although the line is cut before the broker is told."""
    gate = Gate()
    bench.broker.prepare = lambda session: (
        cut_while_settling(session) if session.number == 1 else None
    )
    session = bench.start(gate)
    session.deliver_soon("apple")
    assert get_soon(gate.entered) == "apple"
    second = bench.next_session()
    second.deliver_soon("apple", redelivered=True)
    second.expect(Frame(1, ACK, False))
    bench.stop()
    assert gate.entered.empty()
    assert bench.supervisor.stats.acknowledged == bench.supervisor.stats.deduplicated == 1


def test_lost_while_settling_the_last(bench: Bench) -> None:
    """What ends the consumer ends it, although the line is cut before the broker is told."""
    gate = Gate()
    gate.errors["apple"] = error = HaltConsumer()
    bench.broker.prepare = cut_while_settling
    bench.start(gate).deliver_soon("apple")
    assert bench.end() == End(error, error.exit_code)
    assert len(bench.broker.sessions) == 1


def test_lost_outcome_of_dead_session(bench: Bench) -> None:
    """An outcome of a dead session never reaches the wire of the next."""
    gate = Gate("apple")
    session = bench.start(gate)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    session.lose_soon()
    second = bench.next_session()
    second.deliver_soon("pear")
    gate.let_out("apple")
    second.expect(Frame(1, ACK, False))
    assert get_soon(gate.entered) == "pear"
    bench.stop()
    second.expect("cancel", "close")


def test_lost_prefetched_is_forgotten(bench: Bench) -> None:
    """What no worker had begun runs only when it is delivered again."""
    gate = Gate("apple")
    session = bench.start(gate)
    session.deliver_soon("apple", "pear")
    get_soon(gate.entered)
    session.lose_soon()
    second = bench.next_session()
    gate.let_out("apple")
    second.deliver_soon("pear", redelivered=True)
    assert get_soon(gate.entered) == "pear"
    second.expect(Frame(1, ACK, False))
    bench.stop()
    assert gate.entered.empty()


def test_lost_says_what_is_next(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning says what is wrong, since when, and when it is tried again."""
    monkeypatch.setattr(outage_module, "time", lambda: 1_000_000.0)
    session = bench.start(delay=1000.0)
    session.lose_soon()
    session.expect("discard")
    bench.stop()
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    began, due = clock(1_000_000), clock(1_001_000)
    assert record.getMessage() == f"not consuming since {began}, next at {due}: the line is cut"


def test_lost_settled_before(bench: Bench) -> None:
    """Only a session after a good one takes what is missing for passing."""
    failures = [SessionLost("not yet"), None, None]

    def prepare(session: MemorySession) -> None:
        failure = failures[len(bench.broker.sessions) - 1]
        session.on_connect = lambda: raise_unless_none(failure)

    bench.broker.prepare = prepare
    bench.start()
    good = bench.next_session()
    good.lose_soon()
    bench.next_session()
    assert [session.retry_codes for session in bench.broker.sessions] == [{405}, {405}, {404, 405}]
    assert [session.number for session in bench.broker.sessions] == [1, 1, 2]


def raise_unless_none(error: Exception | None) -> None:
    """Raise an error if there is one."""
    if error is not None:
        raise error


def test_lost_and_back(bench: Bench) -> None:
    """An outage ends with the next session; the one after it begins anew."""
    failures: list[Exception | None] = [None, SessionLost("not yet"), None]

    def prepare(session: MemorySession) -> None:
        failure = failures[len(bench.broker.sessions) - 1]
        session.on_connect = lambda: raise_unless_none(failure)

    told = Told()
    bench.broker.prepare = prepare
    first = bench.start(observers=(told,))
    first.lose_soon()
    bench.next_session()
    third = bench.next_session()
    third.deliver_soon("apple")
    third.expect(Frame(1, ACK, False))
    bench.stop()
    texts = [re.sub("since [^(,]*[0-9]", "since then", state.text) for state in told.states]
    assert [re.sub(", next at .*?: ", ", soon: ", text) for text in texts][:-2] == [
        "connecting to near",
        "consuming from fruit in memory",
        "not consuming since then, soon: the line is cut",
        "not consuming since then, attempt 1: connecting to near",
        "not consuming since then (1 attempt), soon: not yet",
        "not consuming since then, attempt 2: connecting to near",
        "consuming from fruit in memory",
    ]


# -- callbacks that hang --------------------------------------------------------


class Told(Observer):
    """Notes the states, and lets the test wait for each."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.phases: SimpleQueue[Phase] = SimpleQueue()

    def on_state(self, state: State) -> None:
        self.states.append(state)
        self.phases.put(state.name)


@pytest.mark.parametrize("workers", [1, 2])
def test_stuck_at_once(bench: Bench, workers: int) -> None:
    """A callback past its time shows as soon as it is, and no longer once it has ended.

    No tick is due for 1000 s, and nothing comes from the broker.
    """
    gate, told = Gate("apple"), Told()
    session = bench.start(gate, workers=workers, observers=(told,), callback_timeout=0.2)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    wait_until(lambda: session.timers)
    (seconds, _) = session.timers[0]
    assert 0 < seconds <= 0.2
    wait_until(lambda: bench.supervisor.runs[0].is_overdue)
    session.fire(0)
    phase = Phase.STUCK if workers == 1 else Phase.PARTLY_STUCK
    wait_until(lambda: bench.supervisor.state.name is phase)
    assert re.fullmatch(
        rf"{phase}, 1 of {workers} workers past callback_timeout \(0.2 s\): message apple from "
        r"queue 'fruit' runs for \d+ s on fmconsume-worker-\d",
        bench.supervisor.state.text,
    )
    gate.let_out("apple")
    wait_until(lambda: bench.supervisor.state.name is Phase.CONSUMING)
    assert [state.name for state in told.states][-2:] == [phase, Phase.CONSUMING]


def test_stuck_alarm_only_while_something_runs(bench: Bench) -> None:
    """An idle consumer has no timer; the one of a callback serves the next one, and ends then."""
    names = ("apple", "pear")
    gate = Gate(*names)
    session = bench.start(gate, callback_timeout=100.0)
    turn(bench)
    assert session.timers == []
    for name in names:
        session.deliver_soon(name)
        get_soon(gate.entered)
        wait_until(lambda: session.timers)
        turn(bench)
        assert [0 < seconds <= 100.0 for seconds, _ in session.timers] == [True]
        gate.let_out(name)
        session.expect(Frame(session.tag, ACK, False))
    session.fire(0)
    turn(bench)
    assert len(session.timers) == 1


def test_stuck_alarm_in_a_new_session(bench: Bench) -> None:
    """The timer of a session that is lost never comes: the next session gets another one."""
    gate = Gate("apple")
    session = bench.start(gate, callback_timeout=100.0)
    session.deliver_soon("apple")
    get_soon(gate.entered)
    wait_until(lambda: session.timers)
    session.lose_soon()
    second = bench.next_session()
    wait_until(lambda: [seconds for seconds, _ in second.timers if seconds > 10])
    gate.let_out("apple")


def turn(bench: Bench) -> None:
    """Let the supervisor come to the end of a turn."""
    for _ in range(2):
        turned = Event()
        bench.supervisor.mailbox.post(turned.set)
        wait_soon(turned)


# -- several addresses ----------------------------------------------------------


def test_failover_last_good_first(bench: Bench) -> None:
    """Addresses are tried in turn; after a loss the one that worked last is the first."""
    bench.broker.prepare = lambda session: setattr(
        session,
        "on_connect",
        lambda: raise_unless_none(SessionLost("down") if session.address is FAR else None),
    )
    assert bench.start(addresses=(FAR, NEAR)).address is FAR
    good = bench.next_session()
    assert good.address is NEAR
    good.lose_soon()
    assert bench.next_session().address is NEAR


def test_failover_refused_by_one(bench: Bench) -> None:
    """An address that refuses does not matter while another one works."""
    bench.broker.prepare = lambda session: setattr(
        session,
        "on_connect",
        lambda: raise_unless_none(ConnectionException() if session.address is FAR else None),
    )
    bench.start(addresses=(FAR, NEAR))
    good = bench.next_session()
    good.deliver_soon("apple")
    good.expect(Frame(1, ACK, False))
    assert bench.stop() == End(None, ExitCode.OK)


def test_failover_none_works(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """While an address is only lost all are tried again, and the log says what each answers."""
    refusal = ConnectionException(reason="go away")
    errors = [SessionLost("down"), refusal, refusal, refusal]

    def prepare(session: MemorySession) -> None:
        error = errors[len(bench.broker.sessions) - 1]
        session.on_connect = lambda: raise_unless_none(error)

    bench.broker.prepare = prepare
    bench.start(addresses=(FAR, NEAR))
    assert bench.end() == End(refusal, ExitCode.HANDSHAKE)
    assert [session.address.name for session in bench.broker.sessions] == [
        "far",
        "near",
        "far",
        "near",
    ]
    assert re.search(
        "not consuming since .* \\(1 attempt\\), next at .*: down; go away", caplog.text
    )


def test_run_locked_for_too_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that another connection holds at the first start is waited for, not for ever."""
    monkeypatch.setattr(supervisor_module, "_AT_FIRST", 0.0)
    assert not bench.start().retry_codes


def test_run_locked_while_draining(bench: Bench) -> None:
    """A drain waits for no queue that is locked or gone, also after a reconnection."""
    bench.broker.prepare = lambda session: setattr(session, "ready", 1)
    bench.start(drain=True).lose_soon()
    bench.next_session()
    assert [session.retry_codes for session in bench.broker.sessions] == [set(), set()]
