"""pika by hand at its best: one thread, and one basic_ack for half a prefetch of messages.

What remains is what pika itself takes to receive a message: the floor for whatever is built on it.
"""

from __future__ import annotations

import json
from typing import Any

import pika

from benchmarks.clients.contract import Tally, arguments


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    batch = max(1, args.prefetch // 2)

    def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        is_last = tally.see(json.loads(body))
        # Tags count from 1.
        if is_last or method.delivery_tag % batch == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if is_last:
            channel.stop_consuming()

    connection = pika.BlockingConnection(pika.URLParameters(args.url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=args.prefetch)
    channel.basic_consume(args.queue, callback)
    channel.start_consuming()
    connection.close()
    tally.report()


if __name__ == "__main__":
    main()
