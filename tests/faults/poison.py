"""Bad messages among good ones, while the line is cut or the consumer killed."""

from __future__ import annotations

import collections
import random
from pathlib import Path
from typing import Callable

from fmconsume.config import DEFAULTS
from fmconsume.exceptions import Nack
from fmconsume.message import Message
from tests.integration.broker import Broker
from tests.integration.proxy import Proxy
from tests.integration.running import nested_array, odd_properties, to_toml
from tests.waiting import wait_until

from .scene import Account, Process, Row, busy, running, unique

__all__ = ["KINDS", "poison", "poison_and_kill"]

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


#: By name, what a callback raises over a bad message; None where it never gets one.
KINDS: dict[str, type[Exception] | None] = {
    "Nack": Nack,
    "exception": ValueError,
    "undecodable body": None,
    "unreadable header": None,
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
    queue, dead, arguments = _declare(broker, queue_type)
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
        wait_until(lambda: len(set(account.finished)) == row.messages - bad)
        wait_until(lambda: broker.depth(queue) == (0, 0))
    kept = len(list(folder.iterdir()))
    row.lost += (bad - broker.ready(dead)) + (bad - kept)
    row.notes.append(f"{broker.ready(dead)} of {bad} dead-lettered, {kept} kept")
    for name in (queue, dead):
        broker.delete(name)
    row.messages -= bad
    return account.enter_into(row)


def poison_and_kill(
    broker: Broker,
    folder: Path,
    kind: str,
    rounds: int,
    workers: int,
    rng: random.Random,
    queue_type: str = "classic",
) -> Row:
    """Publish messages of which some are bad for ever, and kill the consumer again and again.

    It has a state. Each good one has to run once, and each bad one to be kept and dead-lettered
    once, or twice where the kill came in between.
    """
    batch = 200
    fault = f"bad messages: {kind} ({queue_type} queue), consumer killed"
    row = Row(fault, workers, rounds, rounds * batch)
    queue, dead, arguments = _declare(broker, queue_type)
    kept = folder / "kept"
    failures = {
        "on_exception": "nack",
        "max_attempts": 3,
        "delay": {"initial": 0.01, "max": 0.1},
        "keep_in": str(kept),
        "keep": 100_000,
    }
    process = Process(
        folder,
        broker.url(),
        queue,
        workers=workers,
        more=f"state = {to_toml(str(folder / 'state'))}\nfailures = {to_toml(failures)}\n",
        queue_settings=f"arguments = {to_toml(arguments)}\n",
    )
    bad = rounds * batch // _EVERY
    row.messages -= bad
    for number in range(rounds):
        _publish(broker, queue, kind, range(number * batch, (number + 1) * batch))
        command = process.start()
        some = (number + rng.random()) * (batch - batch // _EVERY)
        wait_until(lambda goal=some: len(process.finished()) > goal, 120)
        command.kill()
        command.wait()
    process.finish(row.messages, lambda: broker.depth(queue) == (0, 0))
    in_kept = len(list(kept.iterdir()))
    row.notes.append(f"{broker.ready(dead)} of {bad} dead-lettered, {in_kept} kept")
    most = bad + rounds * workers  # Each worker may be between the two steps.
    row.lost += sum(not bad <= found <= most for found in (broker.ready(dead), in_kept))
    for name in (queue, dead):
        broker.delete(name)
    counts = collections.Counter(process.finished())
    row.lost += row.messages - len(counts)
    # One may have been at its very end.
    again = sum(counts.values()) - len(counts)
    row.rerun = again if again > 1 else 0
    return row


def _declare(broker: Broker, queue_type: str) -> tuple[str, str, dict[str, str]]:
    """Declare a queue and another one for its dead letters; give both and its arguments."""
    dead = broker.declare(unique("dead"))
    arguments = {
        "x-queue-type": queue_type,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead,
    }
    spelt = {name.replace("-", "_"): value for name, value in arguments.items()}
    return broker.declare(unique("poisoned"), **spelt), dead, arguments


def _publish(broker: Broker, queue: str, kind: str, numbers: range) -> None:
    """Publish messages, each with an id of its own."""
    bad = [number for number in numbers if number % _EVERY == 0]
    good = [{"n": number} for number in numbers if number % _EVERY]
    for number in bad:
        if kind == "unreadable header":
            properties = odd_properties(nested_array(), b"bad %d" % number)
            with broker.channel() as channel:
                channel.basic_publish("", queue, b'{"n": 0}', properties)
            continue
        error = KINDS[kind]
        body = b"no json" if error is None else {"n": number, "bad": error.__name__}
        broker.publish(queue, [body], message_id=f"bad {number}")
    broker.publish(queue, good)
