"""Not a consumer: publishes at a steady rate, with the time in each body.

The time is CLOCK_MONOTONIC, which is the same for all processes of a machine.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid

import pika

from benchmarks.messages import make_body


def main() -> None:
    """Publish so many messages."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("queue")
    parser.add_argument("count", type=int)
    parser.add_argument("rate", type=float, help="messages a second")
    args = parser.parse_args()
    connection = pika.BlockingConnection(pika.URLParameters(args.url))
    channel = connection.channel()
    started = time.monotonic()
    for number in range(args.count):
        time.sleep(max(0.0, started + number / args.rate - time.monotonic()))
        body = {**make_body(number, 480), "sent": time.monotonic_ns()}
        channel.basic_publish("", args.queue, json.dumps(body), properties())
    connection.close()


def properties() -> pika.BasicProperties:
    """Make what a fedora-messaging publisher sends along."""
    return pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        message_id=str(uuid.uuid4()),
        headers={
            "fedora_messaging_schema": "base.message",
            "fedora_messaging_severity": 20,
            "sent-at": "2026-01-01T00:00:00+00:00",
        },
    )


if __name__ == "__main__":
    main()
