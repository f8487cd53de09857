"""A small HTTP server that no idle, slow or hostile client holds up.

One thread serves every connection and waits for none of them. It calls `answer`, so that this
must not wait either. A connection carries one request.
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
from typing import Callable, NamedTuple, Optional

from ..log import get_logger
from ..text import printable
from ..version import __version__

__all__ = ["Answer", "Request", "Server", "parse"]

_log = get_logger(__name__)

#: Connections at the same time; one more takes the place of the oldest.
_CONNECTIONS = 100
#: Seconds that a client gets to ask, and again to take the answer.
_PATIENCE = 5.0
#: Seconds that a client which has its answer gets to hang up. Closed on what it still sends, the
#: connection would be reset, and the answer lost.
_LINGER = 1.0
#: Length of a request at most.
_REQUEST_BYTES = 8192
#: Clients that hammer must not take the processor from the callbacks: after each turn the thread
#: rests nine times as long as it worked, but for so many seconds at least and at most.
_REST, _SHORTEST_REST, _LONGEST_REST = 9, 0.01, 0.2
#: Seconds of answering in a turn, after which further requests wait for the next.
_WORK = 0.005

_END = re.compile(rb"\n\r?\n")
_REQUEST_LINE = re.compile(r"([A-Z]{1,20}) ([!-~]+) HTTP/1\.[0-9]\r?")


class Request(NamedTuple):
    """What a client asks.

    Attributes:
        path: Without the query.
        headers: By name in small letters.
    """

    method: str
    path: str
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What it gets; every answer has some more headers."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def parse(received: bytes) -> Optional[Request]:
    """Read a request, up to its empty line; None where it is malformed."""
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
    # Some of it may repeat what the client sent.
    lines += [f"{name}: {printable(value, _REQUEST_BYTES)}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    return head + answer.body if has_body else head


class _Connection:
    """A client; the server's thread owns it."""

    def __init__(self, client: socket.socket, address: str) -> None:
        self.socket = client
        self.address = address
        #: When the server's patience ends, monotonic seconds.
        self.deadline = monotonic() + _PATIENCE
        #: What came so far.
        self.received = b""
        #: It has asked, and has not been answered.
        self.is_waiting = False
        #: The rest of the answer.
        self.unsent = memoryview(b"")


class Server(threading.Thread):
    """Answers requests, until it is closed.

    Args:
        listener: What clients connect to.
        answer: Gives the answer to a request.
        urgent: Paths that are answered before all others, because that takes no time.
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
        #: Written to by `close`, from any thread.
        self._bell, self._button = socket.socketpair()
        #: Set once, by this thread.
        self._is_closed = False
        #: Oldest first.
        self._connections: dict[_Connection, None] = {}
        #: Those that have asked, with the request or None for a malformed one.
        self._asked: deque[tuple[_Connection, Optional[Request]]] = deque()
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
        """Serve."""
        with self._selector, self._bell:
            while not self._is_closed:
                events = self._selector.select(self._time_left())
                began = thread_time()
                with suppress(Exception):  # A log handler's, say; nothing ends this thread.
                    self._turn([key.data for key, _ in events])
                rest = _REST * (thread_time() - began)
                sleep(min(max(rest, _SHORTEST_REST), _LONGEST_REST))
            for connection in self._connections:
                connection.socket.close()

    def _time_left(self) -> Optional[float]:
        """Return how long the thread may sleep, seconds; None is until a client comes."""
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
        # Until nobody more is there, or too many files are open, which passes.
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
        """Choose who makes room: at best one that is not waiting for an answer."""
        idle = (each for each in self._connections if not each.is_waiting)
        return next(idle, next(iter(self._connections)))

    def _watch(
        self, connection: _Connection, event: int, step: Callable[[_Connection], None]
    ) -> None:
        """Take this step as soon as the connection is ready for it."""
        self._selector.register(connection.socket, event, partial(self._do, step, connection))

    def _do(self, step: Callable[[_Connection], None], connection: _Connection) -> None:
        """Take a step, with a client that may have gone."""
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
        with suppress(KeyError):  # It was waiting for an answer, and not watched.
            self._selector.unregister(connection.socket)
        connection.socket.close()

    # -- steps of a connection ---------------------------------------------

    def _read(self, connection: _Connection) -> None:
        """Read what came; when the request is whole, it waits for its answer."""
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

    def _reply(self, connection: _Connection, request: Optional[Request]) -> None:
        """Answer, and send what can be sent at once."""
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
        """Send what the client takes; after the last of it, wait for the client to hang up."""
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
