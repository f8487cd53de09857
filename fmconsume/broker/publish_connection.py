"""Publishes messages on one connection, on channels that confirm; never repaired, only replaced.

One thread owns it: the one that runs its IOLoop.
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
from ..text import printable
from .addresses import Address
from .alarm import Alarm
from .errors import FORBIDDEN, SessionLost, connect_error, make_parameters, reason
from .request import Request
from .wire import install

__all__ = ["Owner", "PublishConnection"]

#: Channels at most; each carries one message until its confirmation.
_CHANNELS = 32
_TOO_LARGE = (
    "the headers take {:,} bytes, and the broker takes {:,} at most (its frame_max); put into the "
    "body what is that large"
)


class Owner(Protocol):
    """The owner of a connection, which the connection tells of its events."""

    def on_open(self) -> None:
        """Take note that the connection is open."""

    def on_confirmed(self) -> None:
        """Take note that the broker has confirmed a message."""

    def on_room(self) -> None:
        """Send waiting messages, if there are any: there may be room for them now."""

    def on_end(self, error: Exception, unconfirmed: list[Request]) -> None:
        """Go on without the connection: it could not be opened, or is gone.

        Args:
            error: Why.
            unconfirmed: Messages that were sent and not confirmed.
        """


class PublishConnection:
    """A connection and its channels.

    A channel carries one message at a time. So if the broker closes a channel, it refuses the
    one message on it.

    Raises:
        SessionLost: A certificate file cannot be used now.
    """

    def __init__(self, address: Address, loop: IOLoop, owner: Owner) -> None:
        self.address = address
        self._owner = owner
        #: Channels that do not confirm yet.
        self._opening: set[Any] = set()
        #: Channels that can carry a message.
        self._idle: list[Any] = []
        #: Channels that wait for a confirmation, each with its message.
        self._busy: dict[Any, Request] = {}
        #: Of these the channels whose message no queue takes, each with the broker's reason. The
        #: confirmation comes all the same, after the return.
        self._returned: dict[Any, str] = {}
        install()  # A returned message brings its headers, at some of which pika's reader fails.
        self._connection = pika.SelectConnection(
            make_parameters(address), self._on_open, self._on_open_error, self._on_close, loop
        )
        #: Tells whether the broker blocks publishers.
        self.alarm = Alarm(self._connection, owner.on_room)

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return bool(self._connection.is_open)

    @property
    def has_room(self) -> bool:
        """Whether a message can be sent now."""
        return bool(self._idle) and not self.alarm.reason and self.is_open

    def send(self, request: Request) -> None:
        """Send a message on an idle channel; only while `has_room`."""
        limit = self._connection.params.frame_max
        if limit and request.header_bytes > limit:
            # The broker would close the connection, and the other messages on it be unconfirmed.
            request.answer.put(ValidationError(_TOO_LARGE.format(request.header_bytes, limit)))
            return
        channel = self._idle.pop()
        try:
            # That of the class, as in Session: OpenTelemetry may have replaced the channel's own.
            type(channel).basic_publish(
                channel,
                *(request.exchange, request.routing_key, request.body, request.properties),
                mandatory=request.mandatory,
            )
        except Exception as exc:
            # The headers have changed since Request checked them. The channel stays idle, since
            # pika encodes a message before it sends any of it.
            self._idle.append(channel)
            request.answer.put(ValidationError(f"the message cannot be encoded: {exc!r}"))
        else:
            self._busy[channel] = request

    def grow(self, wanted: int) -> None:
        """Open channels until one is opening for each wanted message, or there are 32 in all."""
        room = _CHANNELS - len(self._idle) - len(self._busy)
        with suppress(NoFreeChannels):
            for _ in range(len(self._opening), min(wanted, room)):
                self._opening.add(self._connection.channel(on_open_callback=self._on_channel))

    def forget(self, request: Request) -> None:
        """Wait no longer for the confirmation of this message, and close its channel."""
        for channel in [each for each, sent in self._busy.items() if sent is request]:
            del self._busy[channel]
            with suppress(AMQPError):  # It is closing already, with the connection.
                channel.close()

    def close(self) -> None:
        """Close the connection, open or not; the owner is told by `on_end`."""
        with suppress(AMQPError):  # It is closing already.
            self._connection.close()

    # -- called by pika ----------------------------------------------------

    def _on_open(self, connection: Any) -> None:
        self._owner.on_open()

    def _on_open_error(self, connection: Any, error: Any) -> None:
        self._owner.on_end(connect_error(self.address, error), [])

    def _on_close(self, connection: Any, error: Any) -> None:
        lost = SessionLost(f"{self.address.name}: {reason(error)}")
        self._owner.on_end(lost, list(self._busy.values()))

    def _on_channel(self, channel: Any) -> None:
        channel.add_on_close_callback(self._on_channel_close)
        channel.add_on_return_callback(self._on_return)
        on_ready = partial(self._on_channel_ready, channel)
        channel.confirm_delivery(partial(self._on_confirm, channel), on_ready)

    def _on_channel_ready(self, channel: Any, frame: Any) -> None:
        self._opening.remove(channel)
        self._idle.append(channel)
        self._owner.on_room()

    def _on_return(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._returned[channel] = f"no queue takes it: {printable(method.reply_text)}"

    def _on_confirm(self, channel: Any, frame: Any) -> None:
        request = self._busy.pop(channel, None)
        reason = self._returned.pop(channel, "")
        if request is not None:
            if not isinstance(frame.method, Basic.Ack):
                reason = "the broker refused it (nack)"
            if not reason:
                self._owner.on_confirmed()
            request.answer.put(PublishReturned(reason) if reason else None)
            self._idle.append(channel)
            self._owner.on_room()

    def _on_channel_close(self, channel: Any, error: Any) -> None:
        self._opening.discard(channel)
        self._returned.pop(channel, None)
        if channel in self._idle:
            self._idle.remove(channel)
        # When the connection ends, pika ends its channels first, with another error. Their
        # messages stay in `_busy`, and `_on_close` reports them as unconfirmed.
        if isinstance(error, ChannelClosedByBroker):
            request = self._busy.pop(channel, None)
            if request is not None:
                kind = PublishForbidden if error.reply_code == FORBIDDEN else PublishReturned
                request.answer.put(kind(error))
            self._owner.on_room()
