"""Deliveries, which go to the workers, and outcomes, which come back; plain data.

A delivery and its outcome belong to one thread at a time: a worker's or the supervisor's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .text import printable

if TYPE_CHECKING:
    from pika.spec import BasicProperties

__all__ = [
    "ACK",
    "CHANNEL",
    "DROP",
    "FAIL",
    "NACK",
    "REJECT",
    "RETURNS",
    "SET_ASIDE",
    "Delivery",
    "Frame",
    "Outcome",
    "Verdict",
]


class Verdict(enum.Enum):
    """The answer to the broker about one delivery; the value is its name for people and metrics."""

    ACK = "acknowledged"
    NACK = "requeued"
    DROP = "dropped"
    #: The callback never saw the message: it did not decode, or failed its schema.
    REJECT = "rejected"
    #: The callback failed as often as it may: rejected, after it was kept where there is a folder.
    SET_ASIDE = "set aside"
    #: The callback failed, or a schema is unusable: back to its queue; a delivery limit counts it.
    FAIL = "failed"


# Up to Python 3.11, `Verdict.ACK` takes as long as a function call; every message needs one.
ACK, NACK, DROP, REJECT, SET_ASIDE, FAIL = Verdict
#: The verdicts that send a message back to its queue.
RETURNS = (NACK, FAIL)

#: On every channel the broker counts delivery tags from 1. A session has several channels: its tags
#: are those of the broker, plus this times the number of the channel, where the first has number 0.
CHANNEL = 1 << 48


@dataclass(eq=False)
class Delivery:
    """One message as the broker delivered it.

    Only the same object is equal: a redelivery is another delivery.

    Source: AMQP 0-9-1, basic.deliver. Tags start at 1 on each channel, so a tag
    means nothing without its session.

    Attributes:
        message_id: As it arrived; a callback may change the properties.
        received: When it arrived, monotonic seconds.
        published: The exchange, properties and headers as they came, without the broker's counts.
        fingerprint: The number that `memory.fingerprint` gives. The account sets it.
        identity: The same, but 0 without a message id. The account sets it.
        attempt: 1 where no earlier run of this message has ended in a Nack or an exception, or
            with the process.
        returns: How many runs of it ended so, as far as fmconsume remembers.
        deaths: How many of these ended with the process.
    """

    session: int
    tag: int
    queue: str
    routing_key: str
    redelivered: bool
    properties: BasicProperties
    body: bytes
    message_id: str | None
    received: float
    published: tuple[Any, ...] = ()
    fingerprint: int = 0
    identity: int = 0
    attempt: int = 1
    returns: int = 0
    deaths: int = 0

    @property
    def exchange(self) -> str | bytes | None:
        """The exchange that it was published to; bytes if no UTF-8; None where it is not known."""
        # Deliveries that tests make have three parts, without the exchange.
        return self.published[0] if len(self.published) in (1, 4) else None

    @property
    def name(self) -> str:
        """The message as the log calls it."""
        return f"message {printable(self.message_id)} from queue {self.queue!r}"


class Frame(NamedTuple):
    """One basic.ack, basic.nack or basic.reject.

    Attributes:
        multiple: It settles every outstanding tag up to and including this one.
    """

    tag: int
    verdict: Verdict
    multiple: bool


@dataclass
class Outcome:
    """The verdict on one delivery.

    Attributes:
        error: The exception that ends the consumer (HaltConsumer, or the callback's own);
            None when it goes on.
        seconds: How long the callback ran; 0 if it was not called.
        flaw: Why its body or its headers cannot be read; "" where they can.
        is_repeat: The callback found that the work was done before.
        target: The delivery that it settles: its own, or a redelivery of the same message. The
            account sets it.
        returns: How often the message went back to its queue before; set by the account, for
            verdicts in RETURNS only.
        due: When a held message goes back, monotonic seconds. The supervisor sets it.
    """

    delivery: Delivery
    verdict: Verdict
    error: BaseException | None = None
    seconds: float = 0.0
    flaw: str = ""
    is_repeat: bool = False
    target: Delivery = field(init=False, repr=False, compare=False)
    returns: int = field(init=False, default=0, repr=False, compare=False)
    due: float = field(init=False, default=0.0, repr=False, compare=False)
