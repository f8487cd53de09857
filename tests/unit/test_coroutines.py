"""Tests of the private loop that coroutine callbacks run on."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from fmconsume.engine.coroutines import CoroutineRunner, format_stack
from fmconsume.exceptions import Nack

from .fakes import TIMEOUT, wait_soon


@pytest.fixture
def runner() -> Iterator[CoroutineRunner]:
    """Make a runner, and check that it leaves no thread behind."""
    result = CoroutineRunner()
    yield result
    if not result.loop.is_closed():
        result.close(TIMEOUT)
    assert result.loop.is_closed()
    assert "fmconsume-asyncio" not in {thread.name for thread in threading.enumerate()}


async def give(value: Any) -> Any:
    """Return the value, after the loop had a turn."""
    await asyncio.sleep(0)
    return value


async def fail(error: BaseException) -> None:
    """Raise, after the loop had a turn."""
    await asyncio.sleep(0)
    raise error


async def name_loop() -> tuple[asyncio.AbstractEventLoop, str]:
    """Tell where this runs."""
    return asyncio.get_running_loop(), threading.current_thread().name


class Promise:
    """Awaitable, but no coroutine."""

    def __await__(self) -> Any:
        return give("kept").__await__()


def test_wait_for_gives_result(runner: CoroutineRunner) -> None:
    """What a coroutine returns is the result."""
    assert runner.wait_for(give(7)) == 7


def test_wait_for_any_awaitable(runner: CoroutineRunner) -> None:
    """Anything awaitable will do."""
    assert runner.wait_for(Promise()) == "kept"


@pytest.mark.parametrize("error", [RuntimeError("no"), Nack("busy"), asyncio.CancelledError()])
def test_wait_for_raises(runner: CoroutineRunner, error: BaseException) -> None:
    """What a coroutine raises passes through, and the loop goes on."""
    expected = BaseException if isinstance(error, asyncio.CancelledError) else type(error)
    with pytest.raises(expected) as caught:
        runner.wait_for(fail(error))
    assert caught.value is error or "Cancelled" in type(caught.value).__name__
    assert runner.wait_for(give(7)) == 7


def test_wait_for_from_many_threads(runner: CoroutineRunner) -> None:
    """Workers that come at the same time share one loop on one thread, and run at the same time."""
    count = 8
    barrier = threading.Barrier(count)
    all_in: asyncio.Event | None = None
    inside = 0
    seen: list[Any] = []

    async def callback() -> None:
        nonlocal all_in, inside
        all_in = all_in or asyncio.Event()
        inside += 1
        if inside == count:
            all_in.set()
        await asyncio.wait_for(all_in.wait(), TIMEOUT)
        seen.append(await name_loop())

    def work() -> None:
        barrier.wait(TIMEOUT)
        runner.wait_for(callback())

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert seen == [(runner.loop, "fmconsume-asyncio")] * count


def test_start_twice(runner: CoroutineRunner) -> None:
    """Starting again does nothing."""
    runner.start()
    runner.start()
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("fmconsume-asyncio") == 1


def run_aside(function: Any) -> None:
    """Run on a fresh thread, which has no event loop, and pass on what goes wrong."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(TIMEOUT)
    if errors:
        raise errors[0]


def test_current_loop_is_runners(runner: CoroutineRunner) -> None:
    """Within the block the current loop is the one that callbacks run on."""

    def check() -> None:
        with runner.current_loop():
            assert asyncio.get_event_loop() is runner.loop

    run_aside(check)
    assert runner.wait_for(name_loop())[0] is runner.loop


def test_current_loop_restores(runner: CoroutineRunner) -> None:
    """After the block, even one that fails, the current loop is the one from before."""

    def check() -> None:
        before = asyncio.new_event_loop()
        asyncio.set_event_loop(before)
        try:
            with pytest.raises(KeyError), runner.current_loop():
                raise KeyError
            assert asyncio.get_event_loop() is before
        finally:
            asyncio.set_event_loop(None)
            before.close()

    run_aside(check)


def test_current_loop_restores_none(runner: CoroutineRunner) -> None:
    """Where no loop was current, none is afterwards."""

    def check() -> None:
        with runner.current_loop():
            pass
        with pytest.raises(RuntimeError):
            asyncio.get_event_loop()

    run_aside(check)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asking never makes a loop there")
def test_current_loop_makes_no_other(
    runner: CoroutineRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the main thread, where asking for a loop may make one, no stray loop is left behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # As in a process that has not used asyncio yet.
        asyncio.set_event_loop_policy(None)
    made: list[asyncio.AbstractEventLoop] = []
    new_event_loop = asyncio.DefaultEventLoopPolicy.new_event_loop

    def count(policy: Any) -> asyncio.AbstractEventLoop:
        made.append(new_event_loop(policy))
        return made[-1]

    monkeypatch.setattr(asyncio.DefaultEventLoopPolicy, "new_event_loop", count)
    try:
        with runner.current_loop():
            pass
        assert [loop for loop in made if loop is not runner.loop] == []
    finally:
        asyncio.set_event_loop(None)
        for loop in made:
            loop.close()


def test_close_cancels_tasks(runner: CoroutineRunner) -> None:
    """What still runs on the loop is cancelled, and gets to clean up."""
    started, cleaned = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    async def hang() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    def work() -> None:
        try:
            runner.wait_for(hang())
        except BaseException as exc:
            errors.append(exc)

    worker = threading.Thread(target=work)
    worker.start()
    wait_soon(started)
    runner.close(TIMEOUT)
    worker.join(TIMEOUT)
    assert cleaned.is_set()
    assert [type(error).__name__ for error in errors] == ["CancelledError"]


def test_close_never_used() -> None:
    """A runner that made nothing has nothing to close."""
    CoroutineRunner().close(TIMEOUT)


def test_close_never_started(runner: CoroutineRunner) -> None:
    """A loop that was only made is closed too."""
    loop = runner.loop
    runner.close(TIMEOUT)
    assert loop.is_closed()


def test_close_never_started_with_tasks(runner: CoroutineRunner) -> None:
    """What a callback that ran the loop itself left on it is cancelled, and gets to clean up."""
    cleaned = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async def work() -> asyncio.Task[None]:
        task = asyncio.ensure_future(hang())
        await asyncio.sleep(0)
        return task

    loop = runner.loop
    task = loop.run_until_complete(work())
    runner.close(TIMEOUT)
    assert cleaned
    assert task.cancelled()
    assert loop.is_closed()


def test_close_while_the_callback_runs_the_loop(runner: CoroutineRunner) -> None:
    """A loop that an abandoned callback runs is left alone."""
    loop, running, ends = runner.loop, threading.Event(), []

    async def work() -> None:
        ends.append(asyncio.Event())  # Up to Python 3.9 it belongs to the loop where it is made.
        running.set()
        await ends[0].wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(work(),))
    thread.start()
    assert running.wait(TIMEOUT)
    runner.close(TIMEOUT)
    assert not loop.is_closed()
    loop.call_soon_threadsafe(ends[0].set)
    thread.join(TIMEOUT)
    loop.close()


def test_format_stack_of_a_suspended_coroutine() -> None:
    """A coroutine shows every await down to the one where it waits; a finished one shows none."""

    class Pause:
        def __await__(self) -> Iterator[None]:
            yield

    async def inner() -> None:
        await Pause()

    async def outer() -> None:
        await inner()

    coroutine = outer()
    coroutine.send(None)
    lines = format_stack(coroutine).splitlines()
    assert [line.strip() for line in lines[1::2]] == ["await inner()", "await Pause()"]
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert format_stack(coroutine) == ""


@pytest.mark.parametrize("awaitable", [None, 7, object()])
def test_format_stack_of_something_else(awaitable: object) -> None:
    """What is no coroutine has no stack of its own."""
    assert format_stack(awaitable) == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_wait_for_loop_ended_by_background_task(runner: CoroutineRunner) -> None:
    """A SystemExit in a background task ends the loop, and whoever waits for a result is told."""

    async def leave() -> None:
        raise SystemExit(3)

    async def work() -> None:
        task = asyncio.ensure_future(leave())
        await asyncio.sleep(60)
        await task

    with pytest.raises(asyncio.CancelledError):
        runner.wait_for(work())
    # The thread's end belongs to this test: pytest reports its SystemExit to whichever runs then.
    runner.close(TIMEOUT)
