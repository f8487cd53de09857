"""What tests consume with: a Consumer in a thread, a callback that waits, a configuration file."""

from __future__ import annotations

import copy
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pika

from fmconsume import config
from fmconsume.api import Consumer
from fmconsume.config import DEFAULTS, conf
from fmconsume.message import Message
from tests.waiting import PATIENCE, wait_until

from .broker import Broker

__all__ = [
    "Gate",
    "Running",
    "configured",
    "durable",
    "failures",
    "numbered",
    "warm_up",
    "write_config",
]


class Running(threading.Thread):
    """A consumer that runs in a thread of its own; its methods are for the test's thread."""

    def __init__(self, consumer: Consumer) -> None:
        super().__init__(name="consumer-under-test", daemon=True)
        self.consumer = consumer
        self.error: BaseException | None = None  # what `Consumer.run` raised

    def run(self) -> None:
        try:
            self.consumer.run()
        except BaseException as exc:
            self.error = exc

    def wait_until_consuming(self, reconnections: int = 0) -> None:
        """Wait until the consumer consumes, after so many reconnections at least."""
        wait_until(
            lambda: (
                not self.is_alive()
                or (
                    self.consumer.state.is_consuming
                    and self.consumer.stats.reconnections >= reconnections
                )
            )
        )
        if not self.is_alive():
            self.result()
            raise AssertionError("the consumer ended")

    def wait_for_state(self, name: str) -> str:
        """Wait until the consumer's state has this name, and return its text."""
        wait_until(lambda: self.consumer.state.name == name)
        return self.consumer.state.text

    def result(self, timeout: float = PATIENCE) -> None:
        """Wait until the consumer ends by itself, and raise what it raises."""
        self.join(timeout)
        assert not self.is_alive(), f"still running: {self.consumer.state}"
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Stop the consumer, wait for its end, and raise what it raises."""
        self.consumer.stop()
        self.result()


def failures(**settings: Any) -> dict[str, Any]:
    """Give the table [failures] with some settings, and the defaults of the others."""
    return {**DEFAULTS["failures"], **settings}


def warm_up(broker: Broker, queue: str, running: Running) -> int:
    """Let a consumer run messages until it has its whole prefetch; give how many there were."""
    supervisor = running.consumer._supervisor
    assert supervisor is not None

    def is_warm() -> bool:
        broker.publish(queue, [{"warm": True}] * 20)
        wait_until(lambda: broker.depth(queue) == (0, 0))
        whole = supervisor._topology.prefetch_count
        return supervisor._account.grants.latest[queue].size == whole

    wait_until(is_warm)
    return running.consumer.stats.received


class RawProperties(pika.BasicProperties):
    """Properties that go out as these bytes."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw

    def encode(self) -> list[bytes]:
        return [self._raw]


def odd_properties(value: bytes, message_id: bytes = b"apple") -> RawProperties:
    """Make properties with an id, and one header "odd" that holds an encoded value."""
    table = b"\x03odd" + value
    named = struct.pack(">B", len(message_id)) + message_id
    return RawProperties(b"\x20\x80" + struct.pack(">I", len(table)) + table + named)


def nested_array() -> bytes:
    """Make an encoded value that RabbitMQ takes, and that no header of ours may hold."""
    value = b""
    for _ in range(300):
        value = b"A" + struct.pack(">I", len(value)) + value
    return value


class Gate:
    """A callback that holds every message until `open` is set, but for those of `warm_up`."""

    def __init__(self) -> None:
        self.seen: list[Any] = []  # the "n" of each body, noted on arrival
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, message: Message) -> None:
        if message.body.get("warm"):
            return
        self.seen.append(message.body["n"])
        self.entered.set()
        assert self.open.wait(PATIENCE)


@contextmanager
def configured(**settings: Any) -> Iterator[None]:
    """Give `conf` the defaults and these settings, whatever the machine's own file says."""
    values = {**copy.deepcopy(DEFAULTS), **settings}
    no_alias = mock.patch.object(config, "is_fedora_messaging", False)
    with no_alias, mock.patch.dict(conf, values, clear=True):
        yield


def durable(*queues: str, **arguments: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of queues made by `Broker.declare`, with the same arguments."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return {name: {"durable": True, "arguments": named} for name in queues}


def numbered(count: int) -> Iterator[dict[str, int]]:
    """Make the bodies {"n": 0}, {"n": 1} and so on."""
    return ({"n": number} for number in range(count))


def to_toml(value: Any) -> str:
    """Write a value as TOML has it; a table in one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(to_toml, value))}]"
    if not isinstance(value, dict):
        return json.dumps(value)
    return (
        "{" + ", ".join(f"{json.dumps(key)} = {to_toml(each)}" for key, each in value.items()) + "}"
    )


def write_config(
    path: Path,
    url: str,
    queues: str | Mapping[str, Any] | None = None,
    tables: str = "",
    **top: Any,
) -> Path:
    """Write a TOML file and return its path.

    Args:
        queues: A durable queue, or names and settings; None leaves the section out.
        tables: More tables, as TOML.
        top: Keys outside any table, with strings, numbers and lists.
    """
    settings = durable(queues) if isinstance(queues, str) else queues or {}
    lines = [f"{key} = {to_toml(value)}" for key, value in {"amqp_url": url, **top}.items()]
    for name, queue in settings.items():
        lines.append(f"[queues.{json.dumps(name)}]")
        lines += [f"{key} = {to_toml(value)}" for key, value in queue.items()]
    path.write_text("\n".join([*lines, tables, ""]))
    return path
