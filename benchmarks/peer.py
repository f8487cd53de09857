"""A peer that speaks as much AMQP as a consumer needs and delivers the same bytes each time.

It stands in for RabbitMQ where a broker's own moods must not be part of what is measured. It runs
in a process of its own: `python -m benchmarks.peer PORT COUNT SIZE_BYTES PREFETCH` serves one
connection and ends.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from typing import Any

from pika import frame, spec

from .messages import make_body

__all__ = ["serve"]

#: What a consumer asks on the way, and what it is answered.
_ANSWERS = {
    spec.Connection.StartOk: spec.Connection.Tune(2047, 131_072, 0),
    spec.Connection.Open: spec.Connection.OpenOk(),
    spec.Connection.Close: spec.Connection.CloseOk(),
    spec.Channel.Open: spec.Channel.OpenOk(b""),
    spec.Channel.Close: spec.Channel.CloseOk(),
    spec.Exchange.Declare: spec.Exchange.DeclareOk(),
    spec.Queue.Bind: spec.Queue.BindOk(),
    spec.Basic.Qos: spec.Basic.QosOk(),
}
_CHANNEL = 1
_START = spec.Connection.Start(
    server_properties={
        "product": "RabbitMQ",
        "capabilities": {"basic.nack": True, "consumer_cancel_notify": True},
    },
    mechanisms="PLAIN",
)
_HEADERS = {
    "fedora_messaging_schema": "base.message",
    "fedora_messaging_severity": 20,
    "fedora_messaging_user_releng": True,
    "priority": 0,
    "sent-at": "2026-11-25T20:00:00+00:00",
}


def serve(port: int, count: int, size_bytes: int, prefetch: int) -> None:
    """Deliver so many numbered messages to one consumer, and wait until it closes."""
    contents = [_content(number, size_bytes) for number in range(count)]  # before the measurement
    with socket.create_server(("127.0.0.1", port)) as listener:
        print("listening", flush=True)
        line, _ = listener.accept()
    with line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _Peer(line, contents, prefetch).run()


def _content(number: int, size_bytes: int) -> bytes:
    """Make what follows basic.deliver on the wire."""
    body = json.dumps(make_body(number, size_bytes)).encode()
    properties = spec.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        headers=_HEADERS,
        delivery_mode=2,
        priority=0,
        message_id=f"7a6b2c3d-0000-4000-8000-{number:012}",
    )
    header = frame.Header(_CHANNEL, len(body), properties).marshal()
    return header + frame.Body(_CHANNEL, body).marshal()


class _Peer:
    def __init__(self, line: socket.socket, contents: list[bytes], prefetch: int) -> None:
        self._line = line
        self._contents = contents
        self._prefetch = prefetch
        #: Messages that were sent to any consumer, and before the one that may be sent something.
        self._sent = self._begin = 0
        #: The last tag that was settled.
        self._settled = 0
        #: The consumer that may be sent something; "" before and after.
        self._consumer_tag = ""

    def run(self) -> None:
        for method, channel in self._methods():
            if isinstance(method, spec.Basic.Ack):
                self._settled = method.delivery_tag
            elif isinstance(method, spec.Queue.Declare):
                self._answer(channel, spec.Queue.DeclareOk(method.queue or "q", 0, 1))
            elif isinstance(method, spec.Basic.Consume):
                self._answer(channel, spec.Basic.ConsumeOk(method.consumer_tag))
                self._consumer_tag, self._begin = method.consumer_tag, self._sent
            elif isinstance(method, spec.Basic.Cancel):
                self._answer(channel, spec.Basic.CancelOk(method.consumer_tag))
                if method.consumer_tag == self._consumer_tag:
                    self._consumer_tag = ""
            elif type(method) in _ANSWERS:
                self._answer(channel, _ANSWERS[type(method)])
                if isinstance(method, spec.Basic.Qos):
                    self._prefetch = method.prefetch_count
            if self._consumer_tag:
                self._deliver()

    def _methods(self) -> Iterator[tuple[Any, int]]:
        """Give each method that arrives, until the line is closed; the peer speaks first."""
        buffer = b""
        while received := self._line.recv(65_536):
            buffer += received
            while True:
                size, found = frame.decode_frame(buffer)
                buffer = buffer[size:]
                if isinstance(found, frame.ProtocolHeader):
                    self._answer(0, _START)
                elif isinstance(found, frame.Method):
                    yield found.method, found.channel_number
                elif not size:
                    break

    def _answer(self, channel: int, method: Any) -> None:
        self._line.sendall(frame.Method(channel, method).marshal())

    def _deliver(self) -> None:
        end = max(self._begin, self._settled) + self._prefetch
        pieces = []
        for content in self._contents[self._sent : end]:
            self._sent += 1
            deliver = spec.Basic.Deliver(self._consumer_tag, self._sent, False, "amq.topic", "a.b")
            pieces += [frame.Method(_CHANNEL, deliver).marshal(), content]
        if pieces:
            self._line.sendall(b"".join(pieces))


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
