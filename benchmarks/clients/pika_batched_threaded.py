"""pika by hand with one worker thread, at its best: what has come goes over as one batch.

Two changes of thread and one basic_ack for each batch, and nothing else: the floor for whatever
runs callbacks off pika's thread.
"""

from __future__ import annotations

import json
import threading
from queue import SimpleQueue
from typing import Any

import pika

from benchmarks.clients.contract import Tally, arguments


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    inbox: SimpleQueue[list[tuple[int, bytes]]] = SimpleQueue()
    #: Of each batch that is done, whether it was the last.
    outbox: SimpleQueue[bool] = SimpleQueue()
    batch: list[tuple[int, bytes]] = []

    def work() -> None:
        is_last = False
        while not is_last:
            for _, body in inbox.get():
                is_last = tally.see(json.loads(body))
            outbox.put(is_last)

    def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        batch.append((method.delivery_tag, body))

    threading.Thread(target=work, daemon=True).start()
    connection = pika.BlockingConnection(pika.URLParameters(args.url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=args.prefetch)
    channel.basic_consume(args.queue, callback)
    is_last = False
    while not is_last:
        connection.process_data_events(5)
        if batch:
            last_tag = batch[-1][0]
            inbox.put(batch)
            batch = []
            is_last = outbox.get()
            channel.basic_ack(last_tag, multiple=True)
    connection.close()
    tally.report()


if __name__ == "__main__":
    main()
