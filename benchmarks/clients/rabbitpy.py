"""rabbitpy, iterating over the queue as its documentation does."""

from __future__ import annotations

import rabbitpy

from benchmarks.clients.contract import Tally, arguments


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    with rabbitpy.Connection(args.url) as connection, connection.channel() as channel:
        queue = rabbitpy.Queue(channel, args.queue, durable=True)
        for message in queue.consume(prefetch=args.prefetch):
            is_last = tally.see(message.json())
            message.ack()
            if is_last:
                break
    tally.report()


if __name__ == "__main__":
    main()
