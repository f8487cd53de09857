"""What several unit tests pretend: a broker's deliveries, a configuration, and waits that end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event
from time import monotonic
from typing import Any, TypeVar

from hypothesis import strategies as st
from pika.spec import BasicProperties

from fmconsume.broker.topology import Topology
from fmconsume.broker.wire import published
from fmconsume.config import DEFAULTS, LazyConfig, conf
from fmconsume.delivery import Delivery
from tests.waiting import PATIENCE

T = TypeVar("T")

#: One queue that is there already.
PLAIN = Topology({}, {"fruit": {"arguments": {}}}, [], False, 10, 0)

#: Seconds after which a rendezvous has failed; nothing waits that long in a good run.
TIMEOUT = PATIENCE

#: Keys and values that a configuration file may hold, most of them wrong.
CONFIG_KEYS = st.sampled_from(
    [*DEFAULTS, "queue", "exchange", "routing_keys", "", "a.b"]
) | st.text(max_size=5)
CONFIG_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CONFIG_KEYS, inner, max_size=3),
    max_leaves=8,
)


def make_delivery(
    session: int = 1,
    tag: int = 1,
    *,
    queue: str = "fruit",
    routing_key: str = "fruit.ripe",
    redelivered: bool = False,
    message_id: str | None = "apple",
    body: bytes = b"{}",
    headers: dict[str, Any] | None = None,
) -> Delivery:
    """Make what a broker delivers."""
    properties = BasicProperties(message_id=message_id, headers=headers)
    return Delivery(
        session,
        tag,
        queue,
        routing_key,
        redelivered,
        properties,
        body,
        properties.message_id,
        monotonic(),
        published(properties),
    )


@contextmanager
def restored_configuration() -> Iterator[LazyConfig]:
    """Let a test load and change the configuration of the process, and put it back."""
    names = ("loaded", "path", "absolute_path", "as_loaded", "in_file", "given", "_mark")
    before, attributes = dict.copy(conf), {name: getattr(conf, name) for name in names}
    try:
        yield conf
    finally:
        dict.clear(conf)
        dict.update(conf, before)
        vars(conf).update(attributes)


def get_soon(queue: SimpleQueue[T]) -> T:
    """Take from a queue, or fail."""
    return queue.get(timeout=TIMEOUT)


def wait_soon(event: Event) -> None:
    """Wait for an event, or fail."""
    assert event.wait(TIMEOUT), "what was waited for did not happen"
