"""What a type checker says of callbacks; `make types` reads it, and nothing runs it.

Each "type: ignore" stands for an error that must be there: mypy tells of one that is not needed.
"""

from __future__ import annotations

import functools

from fmconsume import Consumer, Message, consume


def function(message: Message) -> None:
    """Take a message."""


async def coroutine(msg: Message) -> int:
    """Take a message, under another name, and return something."""
    return msg.severity


def takes_two(message: Message, more: str) -> None:
    """Take a message and something else."""


def takes_none() -> None:
    """Take nothing."""


class Recorder:
    """A class that makes a callback."""

    def __call__(self, message: Message) -> None:
        """Take a message."""

    async def method(self, message: Message) -> None:
        """Take a message."""


class Deaf:
    """A class whose objects cannot be called."""


consume(function)
consume(coroutine)
consume(print)
consume(Recorder)
consume(Recorder())
consume(Recorder().method)
consume(functools.partial(takes_two, more=""))
consume(lambda message: print(message.topic), amqp_url="amqp://localhost/")
Consumer(Recorder, queues={"fruit": {"durable": True}})
consume(takes_none)  # type: ignore[arg-type]
consume(takes_two)  # type: ignore[arg-type]
consume(Deaf)  # type: ignore[arg-type]
consume(Deaf())  # type: ignore[arg-type]
consume(lambda: None)  # type: ignore[arg-type]
consume(7)  # type: ignore[arg-type]
consume("recorder:Recorder")  # type: ignore[arg-type]
