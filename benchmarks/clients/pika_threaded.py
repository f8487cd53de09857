"""pika's documented threaded pattern: the work on another thread, add_callback_threadsafe for acks.

pika's example starts a thread for every message; one worker that is fed by a queue does better.
"""

from __future__ import annotations

import json
import threading
from functools import partial
from queue import SimpleQueue
from typing import Any

import pika

from benchmarks.clients.contract import Tally, arguments


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    inbox: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
    connection = pika.BlockingConnection(pika.URLParameters(args.url))
    channel = connection.channel()

    def work() -> None:
        is_last = False
        while not is_last:
            tag, body = inbox.get()
            is_last = tally.see(json.loads(body))
            connection.add_callback_threadsafe(partial(channel.basic_ack, tag))
        connection.add_callback_threadsafe(channel.stop_consuming)

    def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        inbox.put((method.delivery_tag, body))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    channel.basic_qos(prefetch_count=args.prefetch)
    channel.basic_consume(args.queue, callback)
    channel.start_consuming()
    worker.join()
    connection.close()
    tally.report()


if __name__ == "__main__":
    main()
