"""Long runs: hostile input, many reconnections, many messages; nothing may pile up."""

from __future__ import annotations

import datetime
import decimal
import gc
import itertools
import json
import random
import string
import threading
from typing import Any

import pika
import psutil

from fmconsume.broker.backoff import Backoff
from tests.integration.broker import Broker
from tests.integration.proxy import Proxy
from tests.waiting import wait_until

from .scene import Account, Row, publish, running, unique

__all__ = ["hostile_input", "many_messages", "many_reconnections"]

_PREFETCH = {"prefetch_count": 100, "prefetch_size": 0}


def many_reconnections(broker: Broker, rounds: int, workers: int, rng: random.Random) -> Row:
    """Reconnect many times; no thread, socket or file descriptor stays behind."""
    row = Row("many reconnections", workers, rounds, rounds)
    account = Account()
    queue = broker.declare(unique("leaks"))
    with Proxy(broker) as proxy, running(proxy.url(), queue, account, workers) as runner:
        # The usual delays are for brokers in trouble, and too long for so many.
        runner.consumer._supervisor._backoff = Backoff(0.01, 0.01)
        for number in range(rounds):
            publish(broker, queue, [number])
            wait_until(lambda n=number: len(account.finished) > n)
            if number == rounds // 10:
                before = _held()
            proxy.cut()
        publish(broker, queue, [rounds])
        wait_until(lambda: account.has_all(rounds + 1))
        after = wait_until(lambda: (held := _held()) <= before and held)
    row.messages += 1
    row.notes.append(f"threads and descriptors {before} before, {after} after")
    broker.delete(queue)
    return account.enter_into(row)


def _held() -> tuple[int, int]:
    """Count this process's threads and file descriptors."""
    gc.collect()
    return threading.active_count(), psutil.Process().num_fds()


def many_messages(broker: Broker, messages: int, workers: int, rng: random.Random) -> Row:
    """Consume many messages; the resident memory stays flat once everything is warm."""
    row = Row("many messages", workers, 1, messages)
    seen = bytearray(messages)

    def count(message: Any) -> None:
        seen[message.body["n"]] += 1

    queue = broker.declare(unique("soak"))
    chunk = 10_000
    with running(broker.url(), queue, count, workers, qos=_PREFETCH) as runner:
        for start in range(0, messages, chunk):
            end = min(start + chunk, messages)
            publish(broker, queue, range(start, end))
            wait_until(lambda end=end: runner.consumer.stats.acknowledged >= end)
            # By then the memory of finished messages is full.
            if start <= max(messages // 10, 30_000):
                warm = psutil.Process().memory_info().rss
    grown = psutil.Process().memory_info().rss / warm
    row.lost, row.rerun = seen.count(0), sum(seen) - len(seen) + seen.count(0)
    row.notes.append(f"resident memory {grown:.2f} times that after a tenth")
    assert grown < 1.1, row
    broker.delete(queue)
    return row


def hostile_input(broker: Broker, messages: int, workers: int, rng: random.Random) -> Row:
    """Deliver garbage of every kind; each delivery is settled once and the consumer lives."""
    row = Row("hostile input", workers, 1, messages)
    queue = broker.declare(unique("hostile"))
    with running(
        broker.url(), queue, lambda message: str(message), workers, qos=_PREFETCH
    ) as runner:
        # One that decodes, or a wrong `body` would be taken for the reason, and the consumer end.
        publish(broker, queue, range(1))
        wait_until(lambda: runner.consumer.stats.acknowledged == 1)
        with broker.channel() as channel:
            channel.tx_select()
            for number in range(messages):
                body, properties = hostile_message(rng)
                channel.basic_publish("", queue, body, properties)
                if number % 1000 == 999:
                    channel.tx_commit()
            channel.tx_commit()
        stats = runner.consumer.stats
        wait_until(lambda: _settled(runner.consumer.stats) >= messages)
        wait_until(lambda: broker.depth(queue) == (0, 0))
        assert runner.is_alive(), row
        stats = runner.consumer.stats
    row.lost, row.rerun = messages - _settled(stats), stats.received - 1 - messages
    row.notes.append(f"{stats.acknowledged} reached the callback, {stats.rejected} rejected")
    broker.delete(queue)
    return row


def _settled(stats: Any) -> int:
    """Count what was settled after the first message."""
    return int(stats.acknowledged + stats.rejected - 1)


def hostile_message(rng: random.Random) -> tuple[bytes, pika.BasicProperties]:
    """Make a body and properties such as no honest publisher sends."""
    return _body(rng), pika.BasicProperties(
        content_type=rng.choice([None, "application/json", "", _text(rng, 20)]),
        content_encoding=rng.choice(
            [None, "utf-8", "UTF-8", "latin-1", "gzip", "zlib", "idna", _text(rng, 9)]
        ),
        headers=rng.choice([None, {}, _headers(rng)]),
        message_id=rng.choice([None, "", _text(rng, 30)]),
        priority=rng.choice([None, 0, 255]),
        timestamp=rng.choice([None, 0, 2**32]),
        delivery_mode=2,
    )


def _body(rng: random.Random) -> bytes:
    value = _value(rng, 3)
    choices = [
        lambda: rng.randbytes(rng.randrange(200)) if hasattr(rng, "randbytes") else b"\xff\xfe",
        lambda: json.dumps({"n": value}, default=str).encode(),
        lambda: json.dumps(value, default=str).encode(rng.choice(["utf-8", "utf-16", "utf-32"])),
        lambda: b"[" * rng.choice([10, 5_000]),
        lambda: b'{"a":' * rng.choice([10, 5_000]) + b"1",
        lambda: b"9" * rng.choice([10, 10_000]),
        lambda: b'{"n": NaN}',
        lambda: (
            b'{"n": "' + b"x" * rng.choice([10, 100_000 if rng.random() < 0.02 else 100]) + b'"}'
        ),
        lambda: b"",
    ]
    return rng.choice(choices)()


def _headers(rng: random.Random) -> dict[str, Any]:
    headers = {_text(rng, 12): _value(rng, 2) for _ in range(rng.randrange(4))}
    # RabbitMQ itself reads these, and refuses what is no list of routing keys.
    for name in ("CC", "BCC"):
        headers.pop(name, None)
    names = ("fedora_messaging_severity", "fedora_messaging_schema", "sent-at", "priority")
    for name in names:
        if rng.random() < 0.5:
            headers[name] = rng.choice([20, "base.message", "no.such.schema", _value(rng, 2)])
    return headers


def _value(rng: random.Random, depth: int) -> Any:
    """Make a value of any type that AMQP headers have."""
    if depth and rng.random() < 0.3:
        size = range(rng.randrange(4))
        nested = [_value(rng, depth - 1) for _ in size]
        return nested if rng.random() < 0.5 else dict(zip(map(str, itertools.count()), nested))
    return rng.choice(
        [
            None,
            True,
            rng.randrange(-(2**63), 2**63),
            rng.randrange(-100, 100),
            decimal.Decimal(rng.randrange(10**6)) / 100,
            datetime.datetime(2026, 1, 1, rng.randrange(24), tzinfo=datetime.timezone.utc),
            _text(rng, 40),
            b"\xff\x00\xfe",
        ]
    )


def _text(rng: random.Random, size: int) -> str:
    return "".join(rng.choices(string.printable + "\u00e9\u4e2d\U0001f600", k=rng.randrange(size)))
