"""AMQPStorm, with message objects as its documentation has them."""

from __future__ import annotations

import json
from typing import Any

from amqpstorm import UriConnection

from benchmarks.clients.contract import Tally, arguments


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)

    def callback(message: Any) -> None:
        is_last = tally.see(json.loads(message.body))
        message.ack()
        if is_last:
            message.channel.stop_consuming()

    with UriConnection(args.url) as connection, connection.channel() as channel:
        channel.basic.qos(args.prefetch)
        channel.basic.consume(callback, args.queue, no_ack=False)
        channel.start_consuming()
    tally.report()


if __name__ == "__main__":
    main()
