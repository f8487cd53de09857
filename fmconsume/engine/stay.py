"""Enters a callback that is a context manager before its first message; leaves it after its last.

One worker does both, where its callbacks run. Any thread may call `end` and look at the futures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Callable, NamedTuple

from ..callbacks import enter, leave
from .coroutines import CoroutineRunner

__all__ = ["Stay", "Step"]


class Step(NamedTuple):
    """What is being done to the callback.

    Attributes:
        name: "enters" or "leaves".
        awaited: What is awaited, if anything is.
        began: Monotonic seconds.
    """

    name: str
    awaited: Awaitable[None] | None
    began: float


class Stay:
    """The time that a callback stays entered.

    Args:
        manager: The callback; None if it is no context manager.
        coroutines: Awaits the steps of an asynchronous one for a worker that is a thread.
        is_on_loop: The callback is a coroutine function, so that an asynchronous one comes first.
    """

    def __init__(self, manager: Any, coroutines: CoroutineRunner, is_on_loop: bool) -> None:
        self._manager = manager
        self._is_async = hasattr(manager, "__aenter__") and (
            is_on_loop or not hasattr(manager, "__enter__")
        )
        self._coroutines = coroutines
        #: The present step; None in between. Set by the worker, read by any thread.
        self.current: Step | None = None
        #: The callback is entered; or what that raised. Set by the worker, read by any thread.
        self.entered: Future[None] = Future()
        #: The callback is left; or what that raised. Set by the worker, read by any thread.
        self.left: Future[None] = Future()
        #: Whether to leave the callback: not while it may still run. Set by `end`.
        self._over: Future[bool] = Future()
        if manager is None:
            self.entered.set_result(None)
            self.left.set_result(None)

    def end(self, may_leave: bool) -> None:
        """Let the worker leave the callback, or go without. Thread: any, after the last message."""
        if not self._over.done():
            self._over.set_result(may_leave)

    def spend(self, work: Callable[[], None]) -> None:
        """Enter the callback, work, wait for `end`, and leave it. Thread: the worker's."""
        run = self._coroutines.wait_for if self._is_async else _run_here
        with _told(self.left):
            with _told(self.entered):
                run(self._take(enter))
            if self.entered.exception() is None:
                work()
                if self._over.result():
                    run(self._take(leave))

    async def spend_on_loop(self, work: Callable[[], None]) -> None:
        """Do the same as `spend`, where `work` only begins. Thread: the loop's."""
        with _told(self.left):
            with _told(self.entered):
                await self._take(enter)
            if self.entered.exception() is None:
                work()
                if await self._wait_for_end():
                    await self._take(leave)

    async def _take(self, step: Callable[[Any, bool], Coroutine[Any, Any, None]]) -> None:
        """Enter or leave the callback, and let other threads see it."""
        coroutine = step(self._manager, self._is_async)
        awaited = coroutine if self._is_async else None
        self.current = Step("enters" if step is enter else "leaves", awaited, monotonic())
        try:
            await coroutine
        finally:
            self.current = None

    async def _wait_for_end(self) -> bool:
        """Wait for `end`, even if the callback cancels all other tasks of its loop meanwhile."""
        from asyncio import CancelledError, shield, wrap_future

        over = wrap_future(self._over)
        while not self._coroutines.is_closing:
            with suppress(CancelledError):
                return await shield(over)
        return False


@contextmanager
def _told(step: Future[None]) -> Iterator[None]:
    """Let the future tell that the `with` block has ended, or what it raised."""
    try:
        yield
    except BaseException as exc:
        step.set_exception(exc)
    else:
        step.set_result(None)


def _run_here(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that awaits nothing, on this thread."""
    with suppress(StopIteration):
        coroutine.send(None)
