"""Makes the workers that suit a callback: for a consumer, and for a rehearsal without a broker.

Any thread may call.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Callable

from ..delivery import Delivery, Outcome
from .processor import Processor
from .tasks import make_tasks
from .workers import Pool, Post, make_threads

__all__ = ["make_pool", "rehearse"]

#: Seconds that tasks left on the loop get to clean up at the end of a rehearsal.
_DEADLINE = 5.0
#: Errors of a callback that are no Exception.
_OF_THE_CALLBACK = (SystemExit, CancelledError, GeneratorExit)


def make_pool(processor: Processor, count: int, post: Post, ends_on_error: bool = True) -> Pool:
    """Make the workers that suit the callback: tasks for a coroutine function, else threads.

    Args:
        processor: Each worker gets a copy.
        count: How many workers.
        post: As `Post`.
        ends_on_error: As for `Ports`.
    """
    make = make_tasks if processor.has_coroutine_function else make_threads
    return make(processor, count, post, ends_on_error)


@contextmanager
def rehearse(processor: Processor) -> Iterator[Callable[[Delivery], Outcome]]:
    """Run messages without a broker in a `with` block, on the kind of worker that a consumer has.

    Yields:
        A function that has one worker run a delivery, waits, and gives the outcome. It raises
        the error of the outcome where that is for the caller: a KeyboardInterrupt, or what a test
        framework raises beside Exception.
    """
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    pool = make_pool(processor, 1, outcomes.put, ends_on_error=False)

    def run(delivery: Delivery) -> Outcome:
        pool.inbox.put(delivery)
        outcome = outcomes.get()
        if not isinstance(outcome.error, (type(None), Exception, *_OF_THE_CALLBACK)):
            raise outcome.error
        return outcome

    pool.start()
    try:
        pool.stay.entered.result()
        yield run
    finally:
        # After a KeyboardInterrupt the callback may still run.
        is_idle = not any(worker.is_busy for worker in pool.workers)
        pool.end(may_leave=is_idle)
        try:
            if is_idle:
                pool.stay.left.result()
        finally:
            processor.coroutines.close(_DEADLINE)
