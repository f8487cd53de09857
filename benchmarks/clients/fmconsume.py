"""fmconsume by its public API: the whole Message is built and checked for every delivery."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from typing import Any, Callable

from benchmarks.clients.contract import Tally, arguments
from fmconsume import HaltConsumer, Message, consume
from fmconsume.config import conf

#: Callbacks that have begun and not ended, and the most there were; on asyncio's thread only.
running = peak = 0


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    conf.load_config(os.devnull)
    conf["amqp_url"] = args.url
    conf["qos"]["prefetch_count"] = args.prefetch
    conf["state"] = args.state
    make = coroutine_callback if args.coroutine else partial(plain_callback, steps=args.steps)
    queues = {name: {"durable": True} for name in args.queue.split(",")}
    with suppress(HaltConsumer):
        consume(make(tally, args.wait), [], queues, workers=args.workers)
    tally.report(peak=peak)


def plain_callback(tally: Tally, wait: float, steps: int) -> Callable[[Message], None]:
    """Make a function that tallies, may wait and compute, and ends it all with the last message."""

    def callback(message: Message) -> None:
        is_last = tally.see(message.body)
        if wait:
            time.sleep(wait)
        compute(steps)
        if is_last:
            raise HaltConsumer

    return callback


def compute(steps: int) -> int:
    """Keep the interpreter busy; 50,000 steps take some 2 ms."""
    value = 0
    for step in range(steps):
        value = (value * 31 + step) & 0xFFFF
    return value


def coroutine_callback(tally: Tally, wait: float) -> Callable[[Message], Awaitable[Any]]:
    """Make the same as a coroutine function."""
    import asyncio  # Whoever does without it is not to be charged for it.

    async def callback(message: Message) -> None:
        global running, peak
        running += 1
        peak = max(peak, running)
        is_last = tally.see(message.body)
        if wait:
            await asyncio.sleep(wait)
        running -= 1
        if is_last:
            raise HaltConsumer

    return callback


if __name__ == "__main__":
    main()
