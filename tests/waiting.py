"""Wait for an event instead of sleeping; any thread."""

from __future__ import annotations

import time
from typing import Callable, TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float = 30, every: float = 0.02) -> T:
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
