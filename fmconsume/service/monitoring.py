"""The monitoring server: /live, /ready, /metrics, and a page for a person.

It has threads of its own, which only read what the supervisor's thread recorded.
"""

from __future__ import annotations

import io
import json
import logging
import socket
from contextlib import suppress
from email.message import Message as Headers
from http.server import BaseHTTPRequestHandler
from threading import Thread
from time import monotonic, sleep
from typing import Any, Callable, NamedTuple

from ..engine.state import Stats
from ..exceptions import ConfigurationException
from ..version import __version__
from . import metrics, page
from .history import History, Recent

__all__ = ["Monitoring"]

_log = logging.getLogger(__name__)

#: Requests that are answered at the same time; further ones wait in the kernel.
_THREADS = 4
#: Seconds that a client gets to ask, and again to take the answer.
_PATIENCE = 5.0
#: Length of a request at most.
_REQUEST_BYTES = 8192
#: Seconds that a thread rests after each answer: clients that hammer must not take the
#: processor from the callbacks.
_REST = 0.05


class Monitoring:
    """An HTTP server; it serves within a `with` block.

    Args:
        stats: Gives the counts of the moment.
        address: Name or address to listen at; "" is every interface.
        port: TCP port.
    """

    def __init__(self, stats: Callable[[], Stats], address: str, port: int) -> None:
        self._address = address
        self._port = port
        #: What it tells of; to be made an observer of the engine.
        self.history = History(stats)
        self.recent = Recent()
        self._listener: socket.socket
        #: Set before the listener is closed, read by the server's threads.
        self._is_closed = False

    def __enter__(self) -> Monitoring:
        """Start to serve.

        Raises:
            ConfigurationException: The address or the port cannot be had.
        """
        try:
            self._listener = _listen(self._address, self._port)
        except (OSError, UnicodeError) as exc:
            where = f"port {self._port} of {self._address or 'every interface'}"
            # Some versions of Python name the address once more, in parentheses.
            reason = str(getattr(exc, "strerror", None) or exc).partition(" (")[0]
            raise ConfigurationException(f"monitoring: cannot listen at {where}: {reason}") from exc
        self.recent.__enter__()
        # The consumer may have been made long before it runs.
        self.history.seen = monotonic()
        for number in range(_THREADS):
            name = f"fmconsume-monitoring-{number + 1}"
            Thread(target=self._serve, name=name, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_closed = True
        # Closing alone would not end an accept() under way.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.recent.__exit__()

    def _serve(self) -> None:
        """Answer one client after the other. Threads: fmconsume-monitoring-N."""
        while not self._is_closed:
            try:
                connection, client = self._listener.accept()
                with connection:
                    _Handler(connection, client, self)  # type: ignore[arg-type]
            except OSError:
                # The client went or was too slow; or this server was closed, or there are too
                # many open files, which passes.
                pass
            except Exception:
                _log.exception("a request to the monitoring server failed")
            sleep(_REST)


def _listen(address: str, port: int) -> socket.socket:
    if not address and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    # Not every client that is told "localhost" tries IPv6.
    family, *_, place = min(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM))
    return socket.create_server(place[:2], family=family)


class _Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Any
    server_version = f"fmconsume/{__version__}"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BytesIO(_read_request(self.connection))
        self.connection.settimeout(_PATIENCE)

    def do_GET(self) -> None:
        route = _ROUTES.get(self.path.partition("?")[0], _not_found)
        status, content_type, body = route(self.server, self.headers)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", page.POLICY)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("%s asks %.200r", self.client_address[0], getattr(self, "requestline", ""))


def _read_request(connection: socket.socket) -> bytes:
    """Read up to the empty line; a client that sends slowly gains nothing."""
    deadline = monotonic() + _PATIENCE
    request = b""
    while b"\n\r\n" not in request and b"\n\n" not in request and len(request) < _REQUEST_BYTES:
        connection.settimeout(max(0.0, deadline - monotonic()))
        received = connection.recv(_REQUEST_BYTES)
        if not received:
            break
        request += received
    return request


# -- what there is to ask for ----------------------------------------------


def _live(monitoring: Monitoring, headers: Headers) -> _Answer:
    snapshot = monitoring.history.snapshot
    silence = monitoring.history.silence
    if silence:
        return _json(503, {"status": silence})
    if snapshot.overdue or snapshot.dead_workers:
        return _json(503, {"status": "a callback is past callback_timeout, or a worker ended"})
    return _json(200, {"status": "OK"})


def _ready(monitoring: Monitoring, headers: Headers) -> _Answer:
    """Tell whether messages flow, in the words of fedora-messaging."""
    history, stats = monitoring.history, monitoring.history.stats()
    consumed = {
        "received": stats.received,
        "processed": stats.acknowledged,
        "dropped": stats.dropped,
        "rejected": stats.rejected + stats.requeued,
        "failed": stats.failed,
    }
    text = history.silence or history.state.text
    answer = {"consuming": history.is_consuming, "state": text, "consumed": consumed}
    return _json(200 if history.is_consuming else 503, answer)


def _json(status: int, value: object) -> _Answer:
    return _Answer(status, "application/json", json.dumps(value).encode() + b"\n")


def _metrics(monitoring: Monitoring, headers: Headers) -> _Answer:
    try:
        return _Answer(200, *metrics.write(monitoring.history, headers.get("Accept", "")))
    except ImportError:
        return _text(501, "Metrics need prometheus-client: pip install 'fmconsume[monitoring]'")


def _page(monitoring: Monitoring, headers: Headers) -> _Answer:
    text = page.render(monitoring.history, monitoring.recent.entries)
    return _Answer(200, "text/html; charset=utf-8", text.encode(errors="replace"))


def _not_found(monitoring: Monitoring, headers: Headers) -> _Answer:
    return _text(404, f"There are {', '.join(_ROUTES)}.")


def _text(status: int, text: str) -> _Answer:
    return _Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode())


_ROUTES = {"/": _page, "/live": _live, "/ready": _ready, "/metrics": _metrics}
