"""Tests of Stay: a callback that is a context manager is entered first and left last."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest

from fmconsume.engine.pool import make_pool, rehearse
from fmconsume.engine.processor import Processor, make_processor
from fmconsume.exceptions import Nack

from .fakes import TIMEOUT, make_delivery, wait_soon


class Notebook:
    """Notes what was called, and on which thread."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def note(self, what: str) -> None:
        """Note a call."""
        self.notes.append((what, threading.current_thread().name))


class Plain(Notebook):
    """A function that is entered and left."""

    def __enter__(self) -> object:
        self.note("enter")
        return "whatever"

    def __exit__(self, *exc_info: object) -> bool:
        self.note(f"exit {exc_info}")
        return True

    def __call__(self, message: Any) -> None:
        self.note("call")


class Mixed(Notebook):
    """A function that is entered and left with `async with`."""

    async def __aenter__(self) -> None:
        await asyncio.sleep(0)
        self.note("enter")

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.sleep(0)
        self.note(f"exit {exc_info}")

    def __call__(self, message: Any) -> None:
        self.note("call")


class Coroutine(Mixed):
    """A coroutine function that is entered and left; it has both kinds of methods."""

    def __enter__(self) -> None:
        self.note("wrong")

    def __exit__(self, *exc_info: object) -> None:
        self.note("wrong")

    async def __call__(self, message: Any) -> None:
        self.note("call")


class PlainOnLoop(Plain):
    """A coroutine function that is entered and left with `with`."""

    async def __call__(self, message: Any) -> None:
        self.note("call")


def run(cls: type, messages: int = 2) -> list[tuple[str, str]]:
    """Run messages, and give what was called."""
    processor = make_processor(cls)
    with rehearse(processor) as run_one:
        for tag in range(messages):
            run_one(make_delivery(tag=tag))
    notes: list[tuple[str, str]] = processor.manager.notes
    return notes


WORKER, LOOP = "fmconsume-worker-1", "fmconsume-asyncio"
EXIT = "exit (None, None, None)"


@pytest.mark.parametrize(
    ("cls", "around", "inside"),
    [
        (Plain, WORKER, WORKER),
        (Mixed, LOOP, WORKER),
        (Coroutine, LOOP, LOOP),
        (PlainOnLoop, LOOP, LOOP),
    ],
)
def test_stay_where_callback_runs(cls: type, around: str, inside: str) -> None:
    """The callback is entered and left once, where it runs, or on the loop if that is awaited."""
    assert run(cls) == [("enter", around), ("call", inside), ("call", inside), (EXIT, around)]


def test_stay_without_messages() -> None:
    """A callback that gets no message is entered and left as well."""
    assert run(Plain, 0) == [("enter", WORKER), (EXIT, WORKER)]


def test_stay_of_object() -> None:
    """An object that the user has made is the user's to enter."""
    assert make_processor(Plain()).manager is None


def test_stay_for_fedora_messaging(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of fedora-messaging nothing is entered."""
    monkeypatch.setattr("fmconsume.config.is_fedora_messaging", True)
    processor = make_processor(Plain)
    processor.coroutines.close(0)
    assert processor.manager is None


@pytest.mark.parametrize("base", [Plain, PlainOnLoop])
def test_stay_enter_fails(base: type) -> None:
    """What entering raises reaches whoever waits for it, and nothing is left."""

    class Failing(base):  # type: ignore[misc]
        def __enter__(self) -> None:
            raise ConnectionError("no database")

    processor = make_processor(Failing)
    with pytest.raises(ConnectionError, match="no database"), rehearse(processor):
        pytest.fail("the callback was not entered")
    assert processor.manager.notes == []


@pytest.mark.parametrize("base", [Plain, PlainOnLoop])
def test_stay_exit_fails(base: type) -> None:
    """What leaving raises reaches whoever waits for it."""

    class Failing(base):  # type: ignore[misc]
        def __exit__(self, *exc_info: object) -> bool:
            raise ConnectionError("not flushed")

    with pytest.raises(ConnectionError, match="not flushed"):
        run(Failing)


def test_stay_after_failure() -> None:
    """A callback that raised is left without an exception: its message has had it."""

    class Failing(Plain):
        def __call__(self, message: Any) -> None:
            raise Nack

    assert run(Failing, 1) == [("enter", WORKER), (EXIT, WORKER)]


def test_manager_of_copies() -> None:
    """Every worker's processor knows what one of them enters."""
    manager = object()
    processor = Processor(repr, lambda delivery: delivery, manager=manager)  # type: ignore[arg-type,return-value]
    assert processor.copy(2).manager is manager


def test_describe_while_entered() -> None:
    """Whoever asks what a worker does while it enters the callback sees where that is."""

    class Slow(Plain):
        def __enter__(self) -> object:
            entered.set()
            wait_soon(go_on)
            return None

    entered, go_on = threading.Event(), threading.Event()
    processor = make_processor(Slow)
    pool = make_pool(processor, 1, print)
    pool.start()
    wait_soon(entered)
    text = pool.workers[0].describe()
    go_on.set()
    pool.end()
    pool.stay.left.result(TIMEOUT)
    pool.workers[0].join(TIMEOUT)
    processor.coroutines.close(0)
    assert text.startswith("fmconsume-worker-1 enters the callback for 0 s:\n")
    assert "in __enter__" in text
    assert pool.workers[0].describe() == "fmconsume-worker-1 is idle"


def test_stay_tasks_cancelled() -> None:
    """A coroutine that cancels all tasks but its own does not keep the callback from being left."""

    class Canceller(Coroutine):
        async def __call__(self, message: Any) -> None:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    assert run(Canceller, 2) == [("enter", LOOP), (EXIT, LOOP)]


def test_rehearse_interrupted() -> None:
    """After a KeyboardInterrupt nobody waits for a callback that still runs, and it is not left."""

    class Slow(Plain):
        def __call__(self, message: Any) -> None:
            called.set()
            wait_soon(go_on)

    called, go_on = threading.Event(), threading.Event()
    processor = make_processor(Slow)
    with suppress(KeyboardInterrupt), rehearse(processor) as run_one:
        threading.Thread(target=run_one, args=[make_delivery()], daemon=True).start()
        wait_soon(called)
        raise KeyboardInterrupt
    go_on.set()
    assert processor.manager.notes == [("enter", WORKER)]
