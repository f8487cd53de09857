"""pika by hand: basic_consume, and basic_ack in the callback."""

from __future__ import annotations

import json
from typing import Any

import pika

from benchmarks.clients.contract import Tally, arguments


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)

    def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        is_last = tally.see(json.loads(body))
        channel.basic_ack(method.delivery_tag)
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
