"""A line carries messages to the broker: a connection and channels that confirm, thrown away whole.

One thread owns a line, the one that runs its IOLoop.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import pika
from pika.adapters.select_connection import IOLoop
from pika.exceptions import AMQPError, ChannelClosedByBroker, NoFreeChannels
from pika.spec import Basic

from ..exceptions import PublishForbidden, PublishReturned, ValidationError
from .addresses import Address
from .errors import SessionLost, connect_error, make_parameters, reason
from .request import Request

__all__ = ["Line", "Owner"]

#: Messages that may wait for their confirmation at the same time.
_CHANNELS = 32
_TOO_LARGE = (
    "the headers take {:,} bytes, and the broker takes {:,} at most (its frame_max); put into the "
    "body what is that large"
)


class Owner(Protocol):
    """What a line reports to."""

    def on_open(self) -> None:
        """Take note that the line is open."""

    def on_room(self) -> None:
        """Send what waits, if anything does."""

    def on_end(self, error: Exception, unconfirmed: list[Request]) -> None:
        """Do without the line: it could not be opened, or is gone."""


class Line:
    """A connection and its channels.

    A channel carries one message at a time, so that what the broker says of the channel
    (by closing it) is said of that message and of no other.

    Raises:
        SessionLost: A certificate is of no use now.
    """

    def __init__(self, address: Address, loop: IOLoop, owner: Owner) -> None:
        self.address = address
        #: Reason given by the broker while it blocks publishers (an alarm), or "".
        self.blocked = ""
        self._owner = owner
        self._opening: set[Any] = set()
        self._idle: list[Any] = []
        self._busy: dict[Any, Request] = {}
        self._connection = pika.SelectConnection(
            make_parameters(address), self._on_open, self._on_open_error, self._on_close, loop
        )

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return bool(self._connection.is_open)

    @property
    def has_room(self) -> bool:
        """Whether a message can be sent now."""
        return bool(self._idle) and not self.blocked and self.is_open

    def send(self, request: Request) -> None:
        """Send a message on a channel of its own."""
        limit = self._connection.params.frame_max
        if limit and request.header_bytes > limit:
            # The broker would close the connection, under all who wait for a confirmation.
            request.answer.put(ValidationError(_TOO_LARGE.format(request.header_bytes, limit)))
            return
        channel = self._idle.pop()
        try:
            channel.basic_publish(
                request.exchange, request.routing_key, request.body, request.properties
            )
        except Exception as exc:
            # Its headers were changed since it was checked. pika sends nothing it cannot encode.
            self._idle.append(channel)
            request.answer.put(ValidationError(f"the message cannot be encoded: {exc!r}"))
        else:
            self._busy[channel] = request

    def grow(self, wanted: int) -> None:
        """Open channels for so many more messages."""
        room = _CHANNELS - len(self._idle) - len(self._busy)
        with suppress(NoFreeChannels):
            for _ in range(len(self._opening), min(wanted, room)):
                self._opening.add(self._connection.channel(on_open_callback=self._on_channel))

    def forget(self, request: Request) -> None:
        """Wait no longer for a confirmation."""
        for channel in [each for each, sent in self._busy.items() if sent is request]:
            del self._busy[channel]
            with suppress(AMQPError):  # It is closing already, with the connection.
                channel.close()

    def close(self) -> None:
        """Close the connection, open or not; the owner hears of its end."""
        with suppress(AMQPError):  # It is closing already.
            self._connection.close()

    # -- called by pika ----------------------------------------------------

    def _on_open(self, connection: Any) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._owner.on_open()

    def _on_open_error(self, connection: Any, error: Any) -> None:
        self._owner.on_end(connect_error(self.address, error), [])

    def _on_close(self, connection: Any, error: Any) -> None:
        lost = SessionLost(f"{self.address.name}: {reason(error)}")
        self._owner.on_end(lost, list(self._busy.values()))

    def _on_blocked(self, connection: Any, frame: Any) -> None:
        self.blocked = frame.method.reason or "no reason given"

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        self.blocked = ""
        self._owner.on_room()

    def _on_channel(self, channel: Any) -> None:
        channel.add_on_close_callback(self._on_channel_close)
        on_ready = partial(self._on_channel_ready, channel)
        channel.confirm_delivery(partial(self._on_confirm, channel), on_ready)

    def _on_channel_ready(self, channel: Any, frame: Any) -> None:
        self._opening.remove(channel)
        self._idle.append(channel)
        self._owner.on_room()

    def _on_confirm(self, channel: Any, frame: Any) -> None:
        request = self._busy.pop(channel, None)
        if request is not None:
            is_taken = isinstance(frame.method, Basic.Ack)
            request.answer.put(
                None if is_taken else PublishReturned("the broker refused it (nack)")
            )
            self._idle.append(channel)
            self._owner.on_room()

    def _on_channel_close(self, channel: Any, error: Any) -> None:
        self._opening.discard(channel)
        if channel in self._idle:
            self._idle.remove(channel)
        # When the connection goes, its channels go first: what they carried is unconfirmed.
        if isinstance(error, ChannelClosedByBroker):
            request = self._busy.pop(channel, None)
            if request is not None:
                kind = PublishForbidden if error.reply_code == 403 else PublishReturned
                request.answer.put(kind(reason(error)))
            self._owner.on_room()
