"""FastStream: a subscriber that takes the decoded body."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from benchmarks.clients.contract import Tally, arguments


async def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    # It logs two lines for each message otherwise.
    broker = RabbitBroker(args.url, logger=None)
    app = FastStream(broker, logger=None)

    @broker.subscriber(
        RabbitQueue(args.queue, durable=True), channel=Channel(prefetch_count=args.prefetch)
    )
    async def callback(body: dict[str, Any]) -> None:
        if tally.see(body):
            app.exit()

    await app.run(log_level=logging.ERROR)
    tally.report()


if __name__ == "__main__":
    asyncio.run(main())
