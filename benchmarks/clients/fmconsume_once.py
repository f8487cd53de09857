"""fmconsume with a callback that writes a row into a database, and with what makes it run once."""

from __future__ import annotations

import os
from contextlib import suppress

import sqlalchemy

from benchmarks.clients.contract import Tally, arguments
from fmconsume import HaltConsumer, Message, consume
from fmconsume.config import conf
from fmconsume.inbox import Inbox


def main() -> None:
    """Consume so many messages."""
    args = arguments()
    tally = Tally(args.count)
    conf.load_config(os.devnull)
    conf["amqp_url"] = args.url
    conf["qos"]["prefetch_count"] = args.prefetch
    engine = sqlalchemy.create_engine(args.database)
    inbox = Inbox(engine)
    insert = sqlalchemy.text("INSERT INTO work (n) VALUES (:n)")

    def callback(message: Message) -> None:
        with inbox.transaction(message) if args.inbox else engine.begin() as connection:
            connection.execute(insert, {"n": message.body["n"]})
        if tally.see(message.body):
            raise HaltConsumer

    with suppress(HaltConsumer):
        consume(callback, [], {args.queue: {"durable": True}})
    tally.report()


if __name__ == "__main__":
    main()
