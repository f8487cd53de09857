"""Tests of the workers for coroutine functions, on a real loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from fmconsume.delivery import ACK, DROP, FAIL, NACK, REJECT, Delivery, Outcome, Verdict
from fmconsume.engine.coroutines import CoroutineRunner
from fmconsume.engine.processor import Processor
from fmconsume.engine.tasks import make_tasks
from fmconsume.engine.workers import Pool
from fmconsume.exceptions import ConfigurationException, Drop, HaltConsumer, Nack, ValidationError

from .fakes import TIMEOUT, get_soon, make_delivery


def decode_body(delivery: Delivery) -> Any:
    """Make a message of a delivery."""
    return SimpleNamespace(tag=delivery.tag, body=delivery.body)


class Staff:
    """Workers on a loop, and the outcomes that they post."""

    def __init__(self) -> None:
        self.coroutines = CoroutineRunner()
        self.outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self.pool: Pool

    def start(
        self,
        callback: Callable[[Any], Any],
        count: int = 1,
        decode: Callable[[Delivery], Any] = decode_body,
    ) -> None:
        """Make workers and start them."""
        self.kept: list[BaseException | str] = []
        processor = Processor(callback, decode, self._keep, self.coroutines)
        self.pool = make_tasks(processor, count, self.outcomes.put)
        self.pool.start()

    def _keep(self, delivery: Delivery, error: BaseException | str, *, is_set_aside: bool) -> Path:
        self.kept.append(error)
        return Path("kept")

    def put(self, *tags: int) -> None:
        """Put deliveries into the inbox."""
        for tag in tags:
            self.pool.inbox.put(make_delivery(tag=tag))

    def next(self) -> Outcome:
        """Give the outcome that is posted next."""
        return get_soon(self.outcomes)

    def leave(self) -> None:
        """Let the workers that are left end, and all with them."""
        self.pool.end()
        for worker in self.pool.workers:
            worker.join(TIMEOUT)


@pytest.fixture
def staff() -> Iterator[Staff]:
    """Give workers that a test starts."""
    result = Staff()
    yield result
    result.coroutines.close(TIMEOUT)


async def acknowledge(message: Any) -> None:
    """Take a message."""
    await asyncio.sleep(0)


def raising(error: Any) -> Callable[[Any], Any]:
    """Make a callback that raises after a while."""

    async def callback(message: Any) -> None:
        await asyncio.sleep(0)
        raise error

    return callback


@pytest.mark.parametrize(
    ("error", "verdict"), [(Nack, NACK), (Nack("busy"), NACK), (Drop, DROP), (Drop("bad"), DROP)]
)
def test_verdicts(staff: Staff, error: Any, verdict: Verdict) -> None:
    """Verdicts count as from a function, and the worker goes on."""
    staff.start(raising(error))
    staff.put(1, 2)
    for tag in (1, 2):
        outcome = staff.next()
        assert (outcome.delivery.tag, outcome.verdict, outcome.error) == (tag, verdict, None)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (HaltConsumer(3), ACK),
        (HaltConsumer(4, requeue=True), NACK),
        (RuntimeError("no"), FAIL),
        (SystemExit(0), FAIL),
        (KeyboardInterrupt(), FAIL),
        (asyncio.CancelledError(), FAIL),
    ],
    ids=repr,
)
def test_endings(staff: Staff, error: BaseException, verdict: Verdict) -> None:
    """What ends the consumer is reported itself, and ends the worker but not the loop."""
    staff.start(raising(error))
    staff.put(1, 2)
    outcome = staff.next()
    assert (outcome.verdict, outcome.error) == (verdict, error)
    (worker,) = staff.pool.workers
    worker.join(TIMEOUT)
    assert not worker.is_alive()
    assert staff.pool.inbox.get_nowait() is not None
    with pytest.raises(Empty):
        staff.outcomes.get_nowait()
    assert staff.coroutines.loop.is_running()


def test_messages_in_order(staff: Staff) -> None:
    """One worker takes one message after the other."""
    running: set[int] = set()
    seen: list[int] = []

    async def callback(message: Any) -> None:
        running.add(message.tag)
        await asyncio.sleep(0)
        assert running == {message.tag}
        running.remove(message.tag)
        seen.append(message.tag)

    staff.start(callback)
    staff.put(*range(1, 101))
    assert [staff.next().verdict for _ in range(100)] == [ACK] * 100
    assert seen == list(range(1, 101))


def test_as_many_at_once_as_workers(staff: Staff) -> None:
    """So many callbacks run at once as there are workers, and no more."""
    running: set[int] = set()
    peaks: list[int] = []

    async def callback(message: Any) -> None:
        running.add(message.tag)
        # The first ones wait for each other.
        while len(peaks) == 0 and len(running) < 5:
            await asyncio.sleep(0)
        peaks.append(len(running))
        await asyncio.sleep(0)
        running.remove(message.tag)

    staff.start(callback, count=5)
    staff.put(*range(1, 51))
    assert {staff.next().delivery.tag for _ in range(50)} == set(range(1, 51))
    assert max(peaks) == 5


def test_background_task_gets_its_turn(staff: Staff) -> None:
    """Callbacks that never wait leave time for what else runs on the loop."""
    ticks: list[int] = []

    async def tick() -> None:
        while len(seen) < 100:
            ticks.append(len(seen))
            await asyncio.sleep(0)

    seen: list[Any] = []
    tasks: list[Any] = []

    async def callback(message: Any) -> None:
        if not seen:
            tasks.append(asyncio.ensure_future(tick()))
        seen.append(message)

    staff.start(callback)
    staff.put(*range(1, 101))
    for _ in range(100):
        staff.next()
    assert len(ticks) > 50


def test_context_is_fresh(staff: Staff) -> None:
    """A message does not see what the callback set in the context of the one before."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("tag", default=0)
    seen: list[int] = []

    async def callback(message: Any) -> None:
        seen.append(variable.get())
        variable.set(message.tag)

    staff.start(callback)
    staff.put(1, 2, 3)
    for _ in range(3):
        staff.next()
    assert seen == [0, 0, 0]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(ValidationError("a list"), REJECT), (ConfigurationException("no schema"), FAIL)],
)
def test_decoding_fails(staff: Staff, error: Exception, verdict: Verdict) -> None:
    """A message that is invalid is rejected unseen; another failure ends the consumer."""

    def decode(delivery: Delivery) -> Any:
        raise error

    staff.start(acknowledge, decode=decode)
    staff.put(1)
    outcome = staff.next()
    assert outcome.verdict is verdict
    assert outcome.error is (None if verdict is REJECT else error)


def test_log_handler_fails(staff: Staff, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that fails changes no outcome."""

    def fail(*args: Any) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(logging.getLogger("fmconsume.engine.processor"), "handle", fail)
    staff.start(raising(Drop))
    staff.put(1)
    outcome = staff.next()
    assert (outcome.verdict, outcome.error) == (DROP, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_loop_ends_between_messages(staff: Staff) -> None:
    """A loop that ends right when a message is done leaves the next one an outcome, too."""
    tasks = []

    async def end() -> None:
        raise SystemExit(3)

    async def callback(message: Any) -> None:
        if tasks:
            await asyncio.sleep(TIMEOUT)
        tasks.append(asyncio.create_task(end()))

    staff.start(callback)
    staff.put(1, 2)
    assert [staff.next().verdict for _ in range(2)] == [ACK, FAIL]
    tasks[0].exception()  # Else asyncio logs it, in whatever test runs by then.


@pytest.mark.parametrize("is_slow", [False, True])
def test_callback_stops_the_loop(staff: Staff, is_slow: bool) -> None:
    """A callback that stops the loop which is not its own stops neither itself nor the others."""

    async def callback(message: Any) -> None:
        asyncio.get_running_loop().stop()
        if is_slow:
            await asyncio.sleep(0)

    staff.start(callback, count=2)
    staff.put(*range(1, 10))
    assert {staff.next().delivery.tag for _ in range(1, 10)} == set(range(1, 10))
    assert all(worker.is_alive() for worker in staff.pool.workers)
    staff.put(10)
    assert staff.next().verdict is ACK


def test_cancelled_before_it_begins(staff: Staff) -> None:
    """A task that is cancelled before its first step has an outcome, too."""

    async def cancel_others() -> None:
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    staff.start(lambda message: cancel_others(), count=2)
    staff.put(1)
    staff.put(2)
    outcomes = sorted((staff.next() for _ in range(2)), key=lambda each: each.delivery.tag)
    assert [each.delivery.tag for each in outcomes] == [1, 2]
    assert {each.verdict for each in outcomes} <= {ACK, FAIL}


def test_describe(staff: Staff) -> None:
    """While a callback waits, anybody may see where; afterwards the worker is idle."""
    entered, leave = threading.Event(), threading.Event()

    async def linger() -> None:
        entered.set()
        while not leave.is_set():
            await asyncio.sleep(0.001)

    async def callback(message: Any) -> None:
        await linger()

    staff.start(callback)
    staff.put(1)
    assert entered.wait(TIMEOUT)
    (worker,) = staff.pool.workers
    assert worker.current is not None
    description = worker.describe()
    assert description.startswith("fmconsume-worker-1 works on message apple from queue 'fruit'")
    assert "in callback" in description
    leave.set()
    staff.next()
    staff.leave()
    assert worker.current is None
    assert worker.describe() == "fmconsume-worker-1 is idle"


def test_none_ends_one_worker(staff: Staff) -> None:
    """Each None ends a worker, whose callback is finished by then."""
    staff.start(acknowledge, count=3)
    staff.put(1, 2, 3)
    assert all(worker.is_alive() for worker in staff.pool.workers)
    staff.leave()
    assert not any(worker.is_alive() for worker in staff.pool.workers)
    assert {staff.next().verdict for _ in range(3)} == {ACK}


def test_close_abandons(staff: Staff, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that is cancelled because nobody waits for it any more did not fail."""
    entered = threading.Event()

    async def callback(message: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    staff.start(callback)
    staff.put(1)
    assert entered.wait(TIMEOUT)
    staff.coroutines.close(TIMEOUT)
    outcome = staff.next()
    assert (outcome.verdict, type(outcome.error)) == (NACK, asyncio.CancelledError)
    assert not staff.kept
    assert not caplog.records


def test_put_after_loop_has_ended(staff: Staff) -> None:
    """A loop that was ended by somebody else ends the consumer."""
    staff.start(acknowledge)
    staff.coroutines.close(TIMEOUT)
    staff.put(1)
    outcome = staff.next()
    assert outcome.verdict is FAIL
    assert "loop has ended" in str(outcome.error)
    assert not any(worker.is_alive() for worker in staff.pool.workers)
