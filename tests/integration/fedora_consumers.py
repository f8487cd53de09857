"""Consumers as people write them for fedora-messaging; test_compat.py runs them on fmconsume."""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys

import fedora_messaging
from fedora_messaging import api, config
from fedora_messaging.config import conf
from fedora_messaging.exceptions import (
    ConnectionException,
    Drop,
    HaltConsumer,
    Nack,
    PublishException,
    PublishReturned,
)
from fedora_messaging.message import INFO, Message

conf.setup_logging()
_log = logging.getLogger("fedora_messaging_consumer")

# Read while the module is imported, as more than half of them do.
PREFIX = conf["consumer_config"]["prefix"]
TARGET = config.conf["consumer_config"].get("target")


@atexit.register
def tell_what_was_imported() -> None:
    """Print whether Twisted came along."""
    print("twisted" in sys.modules, flush=True)


class Printer:
    """A class, which fedora-messaging instantiates itself."""

    def __init__(self) -> None:
        self.prefix = conf["consumer_config"]["prefix"]

    def __call__(self, message: Message) -> None:
        assert message.severity == INFO
        print(self.prefix, message.topic, message.body["n"], flush=True)


class Handler:
    """An object whose bound method is the callback."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def on_message(self, message: api.Message) -> None:
        """Take a message."""
        print(self.prefix, message.topic, message.body["n"], flush=True)


bound = Handler(PREFIX).on_message


class AsyncHandler:
    """An object that is awaited, with something that belongs to its loop."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()

    async def __call__(self, message: Message) -> None:
        async with self.lock:
            await asyncio.sleep(0)
            print(PREFIX, message.topic, message.body["n"], flush=True)


async_object = AsyncHandler()


def make_callback(prefix: str):
    """Return a closure."""
    count = 0

    def callback(message: Message) -> None:
        nonlocal count
        count += 1
        print(prefix, message.topic, message.body["n"], flush=True)

    return callback


closure = make_callback(PREFIX)


def by_attribute(message: fedora_messaging.message.Message) -> None:
    """Use the package by a plain import and attributes."""
    if not isinstance(message, fedora_messaging.api.Message):
        raise fedora_messaging.exceptions.Drop(message)
    print(fedora_messaging.config.conf["consumer_config"]["prefix"], end=" ")
    print(message.topic, message.body["n"], flush=True)


def republish(message: Message) -> None:
    """Publish from the callback, and be ready for what may go wrong."""
    try:
        api.publish(Message(topic="nowhere"), exchange="no.such.exchange")
    except PublishReturned as exc:
        _log.info("not published: %s", exc.reason)
    try:
        api.publish(Message(topic=TARGET, body=message.body), exchange="")
    except (PublishException, ConnectionException) as exc:
        raise Nack(message) from exc
    print(PREFIX, message.topic, message.body["n"], flush=True)


class Judge:
    """Every verdict there is, in the forms in which consumers raise them."""

    def __init__(self) -> None:
        self.returned: set[str] = set()

    def __call__(self, message: Message) -> None:
        if message.body["n"] == 1 and message.id not in self.returned:
            self.returned.add(message.id)
            raise Nack(message)
        if message.body["n"] == 2:
            raise Drop
        print(PREFIX, message.topic, message.body["n"], flush=True)
        if message.body["n"] == 3:
            raise HaltConsumer(exit_code=7, reason="enough")


def main() -> None:
    """Consume from a program of one's own, as some do."""
    config.conf.load_config(config_path=sys.argv[1])
    seen = []

    def callback(message: Message) -> None:
        seen.append(message)
        print(PREFIX, message.topic, message.body["n"], flush=True)
        if len(seen) == 3:
            raise HaltConsumer

    try:
        api.consume(callback)
    except HaltConsumer as exc:
        sys.exit(exc.exit_code)
