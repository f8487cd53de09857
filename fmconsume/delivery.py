"""What crosses between the supervisor and the workers: deliveries one way, outcomes back."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .text import printable

if TYPE_CHECKING:
    from pika.spec import BasicProperties

__all__ = [
    "ACK",
    "DROP",
    "FAIL",
    "NACK",
    "REJECT",
    "RETURNS",
    "Delivery",
    "Frame",
    "Outcome",
    "Verdict",
]


class Verdict(enum.Enum):
    """What the broker is told about one delivery."""

    ACK = "acknowledged"
    NACK = "requeued"
    DROP = "dropped"
    #: The callback never saw the message: it did not decode, or failed its schema.
    REJECT = "rejected"
    #: The callback failed: back to its queue, in the way that a delivery limit counts.
    FAIL = "failed"


# Looked up in the class, a member takes as long as a call (up to Python 3.11), and this is for
# every message.
ACK, NACK, DROP, REJECT, FAIL = Verdict
#: Those with which a message goes back to its queue.
RETURNS = (NACK, FAIL)


@dataclass(eq=False)
class Delivery:
    """One message as the broker delivered it.

    Compared by identity: a redelivery is another one.

    Source: AMQP 0-9-1, basic.deliver. Tags start at 1 on each channel, so a tag
    means nothing without its session.

    Attributes:
        message_id: As it arrived; a callback may change the properties.
        received: When it arrived, monotonic seconds.
        published: The exchange, properties and headers as they came, without the broker's counts.
        identity: As `memory.identity` gives it; 0 is none.
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
    identity: int = 0

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
    """What became of one delivery.

    Attributes:
        error: What ends the consumer (HaltConsumer, or the callback's own
            exception); None when it goes on.
        seconds: How long the callback ran.
    """

    delivery: Delivery
    verdict: Verdict
    error: BaseException | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """What became of it, as the counts call it."""
        # enum's own name for `value`, without the detour: this runs for every message.
        return self.verdict._value_
