"""Wait for an event instead of sleeping; any thread."""

from __future__ import annotations

import threading
import time
from typing import Callable, TypeVar

T = TypeVar("T")

#: Seconds after which what has to come counts as not coming, also on a machine that is busy.
PATIENCE = 120.0


def wait_until(predicate: Callable[[], T], timeout: float = PATIENCE, every: float = 0.02) -> T:
    """Return the first true value of `predicate`.

    Raises:
        TimeoutError: It was still false after `timeout` seconds; names the last value.
    """
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {value!r} after {timeout:g} s: {predicate}")
        time.sleep(every)
    return value


class Stopwatch:
    """Measures a `with` block, without what a busy machine was late."""

    def __enter__(self) -> Stopwatch:
        self._late = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="stopwatch", daemon=True)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _measure(self) -> None:
        step, before = 0.01, time.monotonic()
        while not self._is_over.wait(step):
            now = time.monotonic()
            self._late += now - before - step
            before = now

    @property
    def seconds(self) -> float:
        """Seconds since the block began."""
        return time.monotonic() - self._began - self._late
