"""fedora-messaging by its blocking API, with the same queue and prefetch."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from fedora_messaging import api, config
from fedora_messaging.exceptions import HaltConsumer

from benchmarks.clients.contract import Tally, arguments


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    config.conf.load_config(os.devnull)
    config.conf["amqp_url"] = args.url
    config.conf["qos"]["prefetch_count"] = args.prefetch

    def callback(message: Any) -> None:
        if tally.see(message.body):
            raise HaltConsumer

    queue = {"durable": True, "auto_delete": False, "exclusive": False, "arguments": {}}
    with suppress(HaltConsumer):
        api.consume(callback, bindings=[], queues={args.queue: queue})
    tally.report()


if __name__ == "__main__":
    main()
