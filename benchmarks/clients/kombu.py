"""kombu, with its own transport (py-amqp) and its own decoding of JSON."""

from __future__ import annotations

from typing import Any

from kombu import Connection, Consumer, Queue

from benchmarks.clients.contract import Tally, arguments


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    is_over = False

    def callback(body: dict[str, Any], message: Any) -> None:
        nonlocal is_over
        is_over = tally.see(body)
        message.ack()

    with Connection(args.url) as connection, connection.channel() as channel:
        channel.basic_qos(0, args.prefetch, False)
        queue = Queue(args.queue, durable=True, no_declare=True)
        with Consumer(channel, queue, callbacks=[callback], accept=["json"]):
            while not is_over:
                connection.drain_events()
    tally.report()


if __name__ == "__main__":
    main()
