"""The kinds of callback, and how many of them run at the same time."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import threading
from typing import ClassVar

import pytest

from fmconsume.exceptions import Drop, HaltConsumer, Nack
from tests.waiting import PATIENCE, wait_until

from .running import failures, numbered, write_config


class _Taker:
    """A callback in many forms; every instance made is kept in `made`."""

    made: ClassVar[list[_Taker]] = []

    def __init__(self):
        self.seen = []
        self.made.append(self)

    def take(self, message):
        self.seen.append(message.body["n"])

    async def take_later(self, message):
        await asyncio.sleep(0)
        self.take(message)


class _Callable(_Taker):
    def __call__(self, message):
        self.take(message)


class _AsyncCallable(_Taker):
    async def __call__(self, message):
        await self.take_later(message)


class _LoopBound(_Taker):
    """As clients do that keep the loop they were made on."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.get_event_loop()

    async def __call__(self, message):
        assert asyncio.get_running_loop() is self.loop
        await self.take_later(message)


def _function():
    taker = _Taker()

    def function(message):
        taker.take(message)

    return function


def _async_function():
    taker = _Taker()

    async def function(message):
        await taker.take_later(message)

    return function


def _function_that_returns_a_coroutine():
    taker = _Taker()
    return lambda message: taker.take_later(message)


@pytest.mark.parametrize(
    "make",
    [
        _function,
        lambda: _Taker().take,
        _Callable,
        lambda: _Callable,
        lambda: functools.partial(_Taker.take, _Taker()),
        _async_function,
        lambda: _Taker().take_later,
        _AsyncCallable,
        lambda: _AsyncCallable,
        lambda: _LoopBound,
        lambda: functools.partial(_Taker.take_later, _Taker()),
        _function_that_returns_a_coroutine,
    ],
    ids=[
        "function",
        "bound method",
        "object",
        "class",
        "partial",
        "async function",
        "async bound method",
        "async object",
        "async class",
        "loop-bound class",
        "async partial",
        "function that returns a coroutine",
    ],
)
def test_callback(broker, queue, run_consumer, monkeypatch, make):
    """Every kind of callback gets each message once; a class is instantiated once."""
    monkeypatch.setattr(_Taker, "made", [])
    running = run_consumer(make(), queue)
    broker.publish(queue, numbered(3))
    wait_until(lambda: running.consumer.stats.acknowledged == 3 or not running.is_alive())
    running.stop()
    taken = [taker for taker in _Taker.made if taker.seen]
    assert [taker.seen for taker in taken] == [[0, 1, 2]]
    assert broker.ready(queue) == 0


def test_callback_class_is_instantiated_before_the_first_message(queue, run_consumer, monkeypatch):
    """A class is instantiated once, before anything is consumed."""
    monkeypatch.setattr(_Taker, "made", [])
    run_consumer(_Callable, queue)
    assert len(_Taker.made) == 1


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(3)], ids=repr)
def test_callback_coroutine_that_fails(broker, queue, run_consumer, error):
    """What a coroutine raises ends the consumer as it would from a function."""

    async def callback(message):
        await asyncio.sleep(0)
        raise error

    broker.publish(queue, numbered(2))
    running = run_consumer(callback, queue, wait=False)
    with pytest.raises(type(error)) as raised:
        running.result()
    assert raised.value is error
    assert broker.ready(queue) == 2


def test_callback_coroutine_with_verdicts(broker, queue, run_consumer):
    """A coroutine gives its verdicts as a function does."""
    seen = []

    async def callback(message):
        await asyncio.sleep(0)
        seen.append((message.body["n"], message.redelivered))
        if message.body["n"] == 0:
            raise Drop
        if message.body["n"] == 1 and not message.redelivered:
            raise Nack
        if message.body["n"] == 2:
            raise HaltConsumer(exit_code=4)

    nack_delay = {"initial": 0.01, "max": 1.0}
    broker.publish(queue, numbered(2))
    running = run_consumer(callback, queue, failures=failures(delay=nack_delay))
    wait_until(lambda: running.consumer.stats.acknowledged == 1)
    broker.publish(queue, [{"n": 2}])
    with pytest.raises(HaltConsumer):
        running.result()
    assert seen == [(0, False), (1, False), (1, True), (2, False)]
    assert running.consumer.exit_code == 4
    assert broker.ready(queue) == 0


def test_callback_several_workers(broker, queue, run_consumer):
    """As many callbacks as there are workers run at the same time."""
    together = threading.Barrier(4)
    running = run_consumer(lambda message: together.wait(PATIENCE) and None, queue, workers=4)
    broker.publish(queue, numbered(8))
    wait_until(lambda: running.consumer.stats.acknowledged == 8 or not running.is_alive())
    running.stop()


def test_callback_several_workers_share_one_loop(broker, queue, run_consumer):
    """Coroutines of several workers run at the same time, on one loop and in one thread."""
    waiting, places = [], set()

    async def callback(message):
        places.add((asyncio.get_running_loop(), threading.current_thread()))
        event = asyncio.Event()
        waiting.append(event)
        if len(waiting) % 3 == 0:
            for each in waiting:
                each.set()
        await asyncio.wait_for(event.wait(), 20)

    running = run_consumer(callback, queue, workers=3)
    broker.publish(queue, numbered(6))
    wait_until(lambda: running.consumer.stats.acknowledged == 6 or not running.is_alive())
    running.stop()
    assert len(places) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_callback_background_task_ends_the_loop(broker, queue, run_consumer):
    """When a background task has ended the loop, the next message ends the consumer, unharmed."""
    ended = threading.Event()
    tasks = []

    async def leave():
        ended.set()
        raise SystemExit(3)

    async def callback(message):
        tasks.append(asyncio.ensure_future(leave()))

    running = run_consumer(callback, queue, wait=False)
    broker.publish(queue, numbered(1))
    assert ended.wait(PATIENCE)
    wait_until(lambda: tasks[0].get_loop().is_closed())
    # Unless somebody asks, it is logged when it is collected as garbage, in some later test.
    assert isinstance(tasks[0].exception(), SystemExit)
    broker.publish(queue, numbered(1))
    with pytest.raises(RuntimeError, match="loop has ended"):
        running.result()
    assert broker.ready(queue) == 1


def test_callback_background_task_runs_between_messages(broker, queue, run_consumer):
    """A task that a coroutine callback leaves behind goes on when the callback has returned."""
    ticked = threading.Event()
    tasks = []

    async def tick():
        await asyncio.sleep(0.05)
        ticked.set()

    async def callback(message):
        tasks.append(asyncio.ensure_future(tick()))

    run_consumer(callback, queue)
    broker.publish(queue, [{}])
    assert ticked.wait(PATIENCE)


_KEPT = """
import os

import fmconsume

class Kept:
    def __enter__(self):
        print("entered", flush=True)
        if os.environ.get("FAIL") == "enter":
            raise ConnectionError("no database")

    def __exit__(self, *exc_info):
        print("left", flush=True)
        if os.environ.get("FAIL") == "exit":
            raise ConnectionError("not flushed")

    def __call__(self, message):
        print("called", message.body["n"], flush=True)
        if message.body["n"] == 1:
            raise fmconsume.HaltConsumer
"""


@pytest.mark.parametrize(
    ("fail", "status", "printed", "line", "left"),
    [
        ("", 0, "entered called 0 called 1 left", "", 1),
        (
            "enter",
            1,
            "entered",
            "fmconsume: the callback failed before the first message: "
            "ConnectionError: no database (kept.py, line 10)",
            3,
        ),
        (
            "exit",
            13,
            "entered called 0 called 1 left",
            "fmconsume: the callback failed: ConnectionError: not flushed",
            1,
        ),
    ],
    ids=["good", "enter fails", "exit fails"],
)
def test_callback_is_context_manager(
    broker, queue, run_command, tmp_path, fail, status, printed, line, left
):
    """A callback class is entered before the first message and left after the last is settled."""
    (tmp_path / "kept.py").write_text(_KEPT)
    config = write_config(tmp_path / "config.toml", broker.url(), queue)
    broker.publish(queue, numbered(3))
    command = run_command(
        "--callback", "kept:Kept", "--config", config, cwd=tmp_path, env={"FAIL": fail}
    )
    assert command.wait(PATIENCE) == status
    assert command.printed().split() == printed.split()
    assert [each for each in command.logged().splitlines() if each.startswith("fmconsume:")] == (
        [line] if line else []
    )
    wait_until(lambda: broker.ready(queue) == left)


def test_callback_is_context_manager_of_one_thread(broker, queue, run_consumer):
    """With one worker a connection that belongs to a thread is made, used and closed on it."""

    class Database:
        def __enter__(self):
            self.connection = sqlite3.connect(":memory:")
            self.connection.execute("CREATE TABLE fruit (n INTEGER)")

        def __exit__(self, *exc_info):
            found.extend(self.connection.execute("SELECT n FROM fruit"))
            self.connection.close()

        def __call__(self, message):
            self.connection.execute("INSERT INTO fruit VALUES (?)", (message.body["n"],))

    found = []
    running = run_consumer(Database, queue)
    broker.publish(queue, numbered(3))
    wait_until(lambda: running.consumer.stats.acknowledged == 3 or not running.is_alive())
    running.stop()
    assert found == [(0,), (1,), (2,)]


def test_callback_is_entered_before_anything_connects(queue, run_consumer):
    """While a callback is being entered nothing is delivered, and a stop waits for it."""

    class Slow:
        def __enter__(self):
            entered.set()
            assert go_on.wait(PATIENCE)

        def __exit__(self, *exc_info):
            seen.append("left")

        def __call__(self, message):
            seen.append("called")

    entered, go_on, seen = threading.Event(), threading.Event(), []
    running = run_consumer(Slow, queue, wait=False)
    assert entered.wait(PATIENCE)
    wait_until(lambda: running.consumer.state.text == "starting: the callback's __enter__ runs")
    running.consumer.stop()
    go_on.set()
    running.result()
    assert (seen, running.consumer.exit_code) == (["left"], 0)


def test_callback_enter_fails_with_foreign_exit_code(queue, run_consumer):
    """An exit_code of another library's exception is not taken for one of ours: 0 would hide it."""

    class Failing:
        def __enter__(self):
            raise type("Exit", (RuntimeError,), {"exit_code": 0})("no database")

        def __exit__(self, *exc_info):
            pass

        def __call__(self, message):
            pass

    running = run_consumer(Failing, queue, wait=False)
    with pytest.raises(RuntimeError, match="no database"):
        running.result()
    assert running.consumer.exit_code == 1


def test_callback_enter_past_callback_timeout(queue, run_consumer, caplog):
    """Entering past callback_timeout is logged with its stack, and the watchdog is not fed."""

    class Slow:
        def __enter__(self):
            assert go_on.wait(PATIENCE)

        def __exit__(self, *exc_info):
            pass

        def __call__(self, message):
            pass

    go_on = threading.Event()
    running = run_consumer(Slow, queue, wait=False, callback_timeout=0.1)
    late = "past callback_timeout: fmconsume-worker-1 enters the callback for"
    wait_until(lambda: late in caplog.text)
    assert "go_on.wait(PATIENCE)" in caplog.text
    go_on.set()
    running.wait_until_consuming()
