"""Runs the coroutines of callbacks on one private asyncio loop, which has its own thread.

Any thread may call `wait_for` and `start`. asyncio is imported only when it is needed.
"""

from __future__ import annotations

import threading
import traceback
import warnings
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = ["CoroutineRunner", "format_stack", "refuse_generator"]


class CoroutineRunner:
    """Runs awaitables for the workers, all on one loop, so that loop-bound clients keep working."""

    def __init__(self) -> None:
        #: The loop and the thread, once they are made. `setdefault` is atomic, so two
        #: workers that make them at the same time get the same ones.
        self._made: dict[str, Any] = {}
        #: Tasks that are left on the loop are about to be cancelled. Set by the thread that calls
        #: `close`, read by any thread.
        self.is_closing = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, made at first use."""
        if "loop" not in self._made:
            import asyncio

            loop = asyncio.new_event_loop()
            if self._made.setdefault("loop", loop) is not loop:
                loop.close()
        return self._made["loop"]  # type: ignore[no-any-return]

    @contextmanager
    def current_loop(self) -> Iterator[None]:
        """Make the loop this thread's current one in a `with` block."""
        import asyncio

        before = _find_loop()
        asyncio.set_event_loop(self.loop)
        try:
            yield
        finally:
            asyncio.set_event_loop(before)

    def start(self) -> None:
        """Start the loop's thread unless it runs."""
        if "thread" not in self._made:
            thread = threading.Thread(target=self._run, name="fmconsume-asyncio", daemon=True)
            if self._made.setdefault("thread", thread) is thread:
                try:
                    thread.start()
                except RuntimeError:
                    del self._made["thread"]  # It does not run, so that `close` cannot join it.
                    raise

    def wait_for(self, awaitable: Awaitable[Any]) -> Any:
        """Await on the loop and give the result, or raise what the awaitable raised."""
        import asyncio

        self.start()
        future = asyncio.run_coroutine_threadsafe(_outcome(awaitable), self.loop)
        result, error = future.result()
        if error is not None:
            raise error
        return result

    def close(self, timeout: float) -> None:
        """Cancel the tasks that are left on the loop, and close it.

        Args:
            timeout: Seconds that cancelled tasks get to clean up.
        """
        self.is_closing = True
        if "thread" in self._made:
            with suppress(RuntimeError):  # The loop is closed: a background task has ended it.
                self.loop.call_soon_threadsafe(self.loop.stop)
            self._made["thread"].join(timeout)
        elif "loop" in self._made and not self.loop.is_running():
            self._close_unused(timeout)

    def _close_unused(self, timeout: float) -> None:
        """Close a loop without a thread, on which a callback may have run coroutines itself."""
        import asyncio

        with suppress(RuntimeError):  # The system refuses a thread now.
            if asyncio.all_tasks(self.loop):
                self.start()
                self._made["thread"].join(timeout)
                return
        self.loop.close()

    def _run(self) -> None:
        """Run the loop until it is closed, then cancel its tasks. Thread: fmconsume-asyncio."""
        import asyncio

        loop = self.loop
        asyncio.set_event_loop(loop)
        try:
            # A callback may stop the loop. It runs again, since workers wait for their results.
            while not self.is_closing:
                # A SystemExit of a background task ends the loop for good. Cancelling the tasks
                # below tells the workers that wait for them.
                loop.run_forever()
        finally:
            try:
                _cancel_tasks(loop)
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                loop.close()


def _find_loop() -> asyncio.AbstractEventLoop | None:
    """Give the loop that is set for this thread, None where none is: asking must not make one."""
    import asyncio

    def refuse() -> asyncio.AbstractEventLoop:
        raise RuntimeError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        policy: Any = asyncio.get_event_loop_policy()
        policy.new_event_loop = refuse
        try:
            return policy.get_event_loop()  # type: ignore[no-any-return]
        except RuntimeError:
            return None
        finally:
            del policy.new_event_loop


def _cancel_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks on the loop, and those that they start as they end, until none is left."""
    import asyncio

    tasks: set[Any] = {None}
    while tasks:
        # A task may raise SystemExit or stop the loop as it ends; the others are still cancelled.
        with suppress(SystemExit, KeyboardInterrupt, RuntimeError):
            loop.run_until_complete(asyncio.sleep(0))
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


async def _outcome(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Await without raising: SystemExit and KeyboardInterrupt would end the loop itself."""
    try:
        return await awaitable, None
    except BaseException as exc:
        return None, exc


def refuse_generator(result: object) -> None:
    """Refuse a callback's result that is a generator, since nobody would run its code.

    Raises:
        TypeError: It is a generator, or a context manager made of one.
    """
    made_of = getattr(result, "gen", result)
    if isinstance(made_of, (GeneratorType, AsyncGeneratorType)):
        kind = type(made_of).__name__.replace("_", " ")
        raise TypeError(f"the callback returned a {kind}, whose code never runs: is a yield in it?")


def format_stack(awaitable: Any) -> str:
    """Say where a coroutine is, outermost call first; "" for anything else. Thread: any."""
    frames = []
    while awaitable is not None:
        frame = getattr(awaitable, "cr_frame", None)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
        awaitable = getattr(awaitable, "cr_await", None)
    return "".join(traceback.StackSummary.extract(frames).format())
