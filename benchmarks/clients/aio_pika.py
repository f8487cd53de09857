"""aio-pika, iterating over the queue as its documentation does."""

from __future__ import annotations

import asyncio
import json

import aio_pika

from benchmarks.clients.contract import Tally, arguments


async def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    async with await aio_pika.connect(args.url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=args.prefetch)
        queue = await channel.declare_queue(args.queue, passive=True)
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    is_last = tally.see(json.loads(message.body))
                if is_last:
                    break
    tally.report()


if __name__ == "__main__":
    asyncio.run(main())
