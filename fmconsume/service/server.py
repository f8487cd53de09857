"""A small HTTP server that no idle, slow or hostile client can block.

One thread serves every connection and waits for none of them. It calls `answer`, which must not
wait either. A connection carries one request. Any thread may make, start and close a Server.
"""

from __future__ import annotations

import re
import socket
import threading
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from time import monotonic, sleep, thread_time
from typing import Callable, NamedTuple

from ..log import get_logger
from ..text import printable
from ..version import __version__

__all__ = ["Answer", "Request", "Server", "parse"]

_log = get_logger(__name__)

#: Connections at the same time; one more takes the place of an old one.
_CONNECTIONS = 100
#: Seconds that a client gets to send its request, then the server to answer, then the client to
#: read the answer; the connection is dropped after them.
_PATIENCE = 5.0
#: Seconds that a client gets to hang up after its answer. If the server closed the connection while
#: the client still sent something, it would be reset, and the answer could be lost.
_LINGER = 1.0
#: Bytes of a request at which reading stops.
_REQUEST_BYTES = 8192
#: Many requests must not take the processor from the callbacks: after each turn the thread rests
#: _REST times as long as it worked, but between _SHORTEST_REST and _LONGEST_REST seconds.
_REST, _SHORTEST_REST, _LONGEST_REST = 9, 0.01, 0.2
#: Seconds of processor time for answers in a turn; further requests wait for the next turn.
_WORK = 0.005

_END = re.compile(rb"\n\r?\n")
_REQUEST_LINE = re.compile(r"([A-Z]{1,20}) ([!-~]+) HTTP/1\.[0-9]\r?")


class Request(NamedTuple):
    """The request of a client.

    Attributes:
        path: Without the query.
        headers: By name in small letters.
    """

    method: str
    path: str
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """The answer to a request; the server adds the headers that all answers have."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def parse(received: bytes) -> Request | None:
    """Parse a request, received up to its empty line; return None if it is malformed."""
    first, *lines = received.decode("latin-1").split("\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        return None
    fields = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    return Request(match[1], match[2].partition("?")[0], headers)


def _compose(answer: Answer, has_body: bool) -> bytes:
    headers = {
        **answer.headers,
        "Content-Length": len(answer.body),
        "Connection": "close",
        "Date": formatdate(usegmt=True),
        "Server": f"fmconsume/{__version__}",
    }
    lines = [f"HTTP/1.0 {answer.status} {HTTPStatus(answer.status).phrase}"]
    # A value may repeat text from the client, which could hold a line break.
    lines += [f"{name}: {printable(value, _REQUEST_BYTES)}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    return head + answer.body if has_body else head


class _Connection:
    """The connection of a client; the server's thread owns it."""

    def __init__(self, client: socket.socket, address: str) -> None:
        self.socket = client
        self.address = address
        #: When the server drops it, monotonic seconds.
        self.deadline = monotonic() + _PATIENCE
        #: The bytes of the request so far.
        self.received = b""
        #: The request has come, and is not answered yet.
        self.is_waiting = False
        #: The bytes of the answer that are not sent yet.
        self.unsent = memoryview(b"")


class Server(threading.Thread):
    """Answers requests, until it is closed.

    Args:
        listener: The socket that clients connect to; its owner closes it.
        answer: Returns the answer to a request, on the server's thread.
        urgent: Paths that are answered before all others, because their answers are quick.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[Request], Answer],
        urgent: Collection[str] = (),
    ) -> None:
        super().__init__(name="fmconsume-monitoring", daemon=True)
        self._listener = listener
        self._answer = answer
        self._urgent = urgent
        self._selector = DefaultSelector()
        #: `close` writes to the button, from any thread, and wakes this thread at the bell.
        self._bell, self._button = socket.socketpair()
        #: Set once, by this thread.
        self._is_closed = False
        #: All connections, oldest first; a dict for its order. Only this thread uses it.
        self._connections: dict[_Connection, None] = {}
        #: Connections to answer next, with their requests; None is a malformed one. Only this
        #: thread uses it.
        self._asked: deque[tuple[_Connection, Request | None]] = deque()
        listener.setblocking(False)
        self._selector.register(listener, EVENT_READ, self._accept)
        self._selector.register(self._bell, EVENT_READ, self._end)

    def close(self, timeout: float) -> None:
        """End the server, and wait so many seconds for its end. Thread: any other, once."""
        with self._button:
            self._button.send(b"!")
            self.join(timeout)

    # -- its own thread ----------------------------------------------------

    def run(self) -> None:
        """Serve until `close`; no error ends this thread before."""
        with self._selector, self._bell:
            while not self._is_closed:
                events = self._selector.select(self._time_left())
                began = thread_time()
                with suppress(Exception):  # For example that of a log handler.
                    self._turn([key.data for key, _ in events])
                rest = _REST * (thread_time() - began)
                sleep(min(max(rest, _SHORTEST_REST), _LONGEST_REST))
            for connection in self._connections:
                connection.socket.close()

    def _time_left(self) -> float | None:
        """Return for how many seconds the thread may sleep; None is until a client connects."""
        if self._asked:
            return 0.0
        deadlines = [connection.deadline for connection in self._connections]
        return max(0.0, min(deadlines) - monotonic()) if deadlines else None

    def _turn(self, steps: Iterable[Callable[[], None]]) -> None:
        for step in steps:
            step()
        began = thread_time()
        while self._asked and thread_time() - began < _WORK:
            connection, request = self._asked.popleft()
            self._do(partial(self._reply, request=request), connection)
        now = monotonic()
        for connection in [each for each in self._connections if each.deadline < now]:
            self._drop(connection)

    def _end(self) -> None:
        self._is_closed = True

    def _accept(self) -> None:
        # accept() raises if no client is left, or if too many files are open, which passes.
        with suppress(OSError):
            for _ in range(_CONNECTIONS):
                client, address = self._listener.accept()
                client.setblocking(False)
                if len(self._connections) >= _CONNECTIONS:
                    self._drop(self._oldest())
                connection = _Connection(client, address[0])
                self._connections[connection] = None
                self._watch(connection, EVENT_READ, self._read)
                self._do(self._read, connection)

    def _oldest(self) -> _Connection:
        """Return the oldest connection that waits for no answer, or else the oldest of all."""
        idle = (each for each in self._connections if not each.is_waiting)
        return next(idle, next(iter(self._connections)))

    def _watch(
        self, connection: _Connection, event: int, step: Callable[[_Connection], None]
    ) -> None:
        """Run this step whenever the connection is ready for the event."""
        self._selector.register(connection.socket, event, partial(self._do, step, connection))

    def _do(self, step: Callable[[_Connection], None], connection: _Connection) -> None:
        """Run a step of a connection, unless that was dropped; drop it if the step fails."""
        if connection not in self._connections:
            return
        try:
            step(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
        except Exception:
            self._drop(connection)
            _log.exception("a request to the monitoring server failed, which is a bug")

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection]
        with suppress(KeyError):  # While it waits for its answer it is not watched.
            self._selector.unregister(connection.socket)
        connection.socket.close()

    # -- steps of a connection ---------------------------------------------

    def _read(self, connection: _Connection) -> None:
        """Read a part of the request; queue the request once it is whole, or too long."""
        received = connection.socket.recv(_REQUEST_BYTES)
        connection.received += received
        end = _END.search(connection.received)
        if end or len(connection.received) >= _REQUEST_BYTES:
            self._selector.unregister(connection.socket)
            connection.is_waiting = True
            connection.deadline = monotonic() + _PATIENCE
            request = parse(connection.received[: end.start()]) if end else None
            is_urgent = request is not None and request.path in self._urgent
            add = self._asked.appendleft if is_urgent else self._asked.append
            add((connection, request))
        elif not received:
            self._drop(connection)

    def _reply(self, connection: _Connection, request: Request | None) -> None:
        """Make the answer to a request, and send as much of it as can be sent at once."""
        line = connection.received.partition(b"\n")[0].decode("latin-1")
        _log.debug("%s asks %s", connection.address, printable(line))
        answer = _MALFORMED if request is None else self._answer_safely(request)
        has_body = request is None or request.method != "HEAD"
        connection.unsent = memoryview(_compose(answer, has_body))
        connection.is_waiting = False
        connection.deadline = monotonic() + _PATIENCE
        self._watch(connection, EVENT_WRITE, self._write)
        self._write(connection)

    def _answer_safely(self, request: Request) -> Answer:
        try:
            return self._answer(request)
        except Exception:
            _log.exception("the monitoring server cannot answer %s", printable(request.path))
            return _FAILED

    def _write(self, connection: _Connection) -> None:
        """Send as much as the client accepts; after the last byte, wait for it to hang up."""
        connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        if not connection.unsent:
            connection.socket.shutdown(socket.SHUT_WR)
            connection.deadline = monotonic() + _LINGER
            self._selector.unregister(connection.socket)
            self._watch(connection, EVENT_READ, self._linger)

    def _linger(self, connection: _Connection) -> None:
        if not connection.socket.recv(_REQUEST_BYTES):
            self._drop(connection)


_PLAIN = {"Content-Type": "text/plain; charset=utf-8"}
_MALFORMED = Answer(400, _PLAIN, b"This is no request that is understood here.\n")
_FAILED = Answer(500, _PLAIN, b"The answer failed; the log of the consumer says why.\n")
