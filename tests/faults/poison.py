"""Bad messages among good ones, while the line is cut."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Callable

from fmconsume.config import DEFAULTS
from fmconsume.exceptions import Nack
from fmconsume.message import Message
from tests.integration.broker import Broker
from tests.integration.proxy import Proxy
from tests.waiting import wait_until

from .scene import Account, Row, busy, running, unique

__all__ = ["KINDS", "poison"]

#: One of so many messages is bad.
_EVERY = 10


class _Poisoned(Account):
    """Returns or raises over what is bad, and counts the rest."""

    def __init__(self, error: type[Exception], work: Callable[[Message], object]) -> None:
        super().__init__(work)
        self._error = error

    def __call__(self, message: Message) -> None:
        if message.body.get("bad"):
            raise self._error
        super().__call__(message)


#: By name, what a callback raises over a bad message; None where it does not decode.
KINDS: dict[str, type[Exception] | None] = {
    "Nack": Nack,
    "exception": ValueError,
    "undecodable body": None,
}


def poison(
    broker: Broker,
    folder: Path,
    kind: str,
    rounds: int,
    workers: int,
    rng: random.Random,
    queue_type: str = "classic",
) -> Row:
    """Publish messages of which some are bad for ever, and cut the line again and again.

    Each good one has to run once, and each bad one to be kept and dead-lettered once.
    """
    batch = 200
    fault = f"bad messages: {kind} ({queue_type} queue), connection reset"
    row = Row(fault, workers, rounds, rounds * batch)
    account = _Poisoned(KINDS[kind] or ValueError, busy(0.002, rng))
    dead = broker.declare(unique("dead"))
    arguments = {
        "x-queue-type": queue_type,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead,
    }
    queue = broker.declare(
        unique("poisoned"), **{k.replace("-", "_"): v for k, v in arguments.items()}
    )
    failures = {
        **DEFAULTS["failures"],
        "on_exception": "nack",
        "max_attempts": 3,
        "delay": {"initial": 0.01, "max": 0.1},
        "keep_in": str(folder),
        "keep": 100_000,
    }
    bad = rounds * batch // _EVERY
    with (
        Proxy(broker) as proxy,
        running(proxy.url(), queue, account, workers, arguments, failures=failures),
    ):
        for number in range(rounds):
            _publish(broker, queue, kind, range(number * batch, (number + 1) * batch))
            some = (number + rng.random()) * (batch - batch // _EVERY)
            wait_until(lambda goal=some: len(account.finished) > goal, 120)
            proxy.cut()
        wait_until(lambda: len(set(account.finished)) == row.messages - bad, 60)
        wait_until(lambda: broker.depth(queue) == (0, 0), 60)
    kept = len(list(folder.iterdir()))
    row.lost += (bad - broker.ready(dead)) + (bad - kept)
    row.notes.append(f"{broker.ready(dead)} of {bad} dead-lettered, {kept} kept")
    for name in (queue, dead):
        broker.delete(name)
    row.messages -= bad
    return account.enter_into(row)


def _publish(broker: Broker, queue: str, kind: str, numbers: range) -> None:
    """Publish messages, each with an id of its own."""
    bad = [number for number in numbers if number % _EVERY == 0]
    good = [{"n": number} for number in numbers if number % _EVERY]
    for number in bad:
        is_undecodable = KINDS[kind] is None
        body = b"no json" if is_undecodable else {"n": number, "bad": True}
        broker.publish(queue, [body], message_id=f"bad {number}")
    broker.publish(queue, good)
