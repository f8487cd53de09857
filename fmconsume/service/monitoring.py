"""The monitoring server: /live, /ready, /metrics, and a page for a person.

The server's thread runs the functions that answer; they only read the History, which the
supervisor's thread records, and the log entries.
"""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from ipaddress import ip_address
from threading import Thread
from time import monotonic
from typing import Callable

from ..exceptions import ConfigurationException, UnavailableException
from ..log import get_logger
from ..redaction import redact_value
from ..text import printable
from . import metrics, page, style
from .history import History
from .recent import Recent
from .server import Answer, Request, Server

__all__ = ["Monitoring"]

_log = get_logger(__name__)

#: Seconds that the server gets to end.
_DEADLINE = 1.0


class Monitoring:
    """An HTTP server; it serves within a `with` block.

    Args:
        history: Recorded by the supervisor's thread as its observer, read by the server's.
        address: Name or address to listen at; "" is every interface.
        port: TCP port.
        published: Returns how many messages this process has published.
    """

    def __init__(
        self,
        history: History,
        address: str,
        port: int,
        published: Callable[[], int] = lambda: 0,
    ) -> None:
        self.published = published
        self._address = address
        self._port = port
        self.history = history
        #: Filled by the threads that log, read by the server's.
        self.recent = Recent()
        #: The names of this machine, in small letters. Replaced whole by fmconsume-names, read by
        #: the server's thread.
        self._names = {"localhost", address.lower()}
        self._listener: socket.socket
        #: Closes everything when the `with` block ends.
        self._opened = ExitStack()

    def __enter__(self) -> Monitoring:
        """Start to serve.

        Raises:
            UnavailableException: The port is in use, or the address is unknown or not this
                machine's.
            ConfigurationException: The address is malformed.
            OSError, RuntimeError: This machine is short of files or threads.
        """
        try:
            self._listener = _listen(self._address, self._port)
        except (OSError, UnicodeError) as exc:
            address = redact_value(self._address) or "every interface"
            where = f"port {self._port} of {address}"
            # Some versions of Python name the address once more, in parentheses.
            reason = str(getattr(exc, "strerror", None) or exc).partition(" (")[0]
            error = UnavailableException if isinstance(exc, OSError) else ConfigurationException
            raise error(f"monitoring: cannot listen at {where}: {reason}") from exc
        # Silence counts from here: the consumer may have been made long before it runs.
        self.history.seen = monotonic()
        with ExitStack() as opened:
            opened.enter_context(self._listener)
            opened.enter_context(self.recent)
            server = Server(self._listener, self._answer, urgent={"/live", "/ready"})
            server.start()
            opened.callback(_end, server)
            # On a thread of its own: DNS may be slow.
            Thread(target=self._learn_names, name="fmconsume-names", daemon=True).start()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._opened.close()

    # -- other threads -----------------------------------------------------

    def _learn_names(self) -> None:
        """Add the names of this machine to the known ones. Thread: fmconsume-names."""
        name, full_name = socket.gethostname(), socket.getfqdn()
        self._names = {*self._names, *map(str.lower, (name, name.partition(".")[0], full_name))}

    def _answer(self, request: Request) -> Answer:
        """Answer a request. Thread: the server's."""
        if request.method not in ("GET", "HEAD"):
            return _text(501, "There is only GET and HEAD.")
        return _ROUTES.get(request.path, _not_found)(self, request)

    def is_asked_by_name(self, request: Request) -> bool:
        """Tell whether the Host header names this machine, is an IP address, or is missing.

        A web site can point its own name at the address of this server, and a browser then lets
        the site read the answers (DNS rebinding). The Host header still has the site's name.
        """
        name = _host(request)
        return name in self._names or not name or _is_address(name)


def _end(server: Server) -> None:
    server.close(_DEADLINE)
    if server.is_alive():
        _log.warning("thread %s did not end and is left behind", server.name)


def _listen(address: str, port: int) -> socket.socket:
    if not address and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    # The smallest is IPv4: not every client that is told "localhost" tries IPv6.
    family, *_, place = min(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM))
    return socket.create_server(place[:2], family=family)


def _host(request: Request) -> str:
    """Return the host in the Host header, in small letters, without the port; "" without one."""
    host = request.headers.get("host", "").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


# -- one function for each path --------------------------------------------


def _live(monitoring: Monitoring, request: Request) -> Answer:
    snapshot, silence = monitoring.history.snapshot, monitoring.history.silence
    if silence:
        return _json(503, {"status": silence})
    if snapshot.overdue or snapshot.dead_workers:
        return _json(503, {"status": "a callback is past callback_timeout, or a worker ended"})
    return _json(200, {"status": "OK"})


def _ready(monitoring: Monitoring, request: Request) -> Answer:
    """Tell whether messages flow, in the words of fedora-messaging."""
    history, stats = monitoring.history, monitoring.history.stats()
    consumed = {
        "received": stats.received,
        "processed": stats.acknowledged,
        "dropped": stats.dropped,
        "rejected": stats.rejected + stats.requeued + stats.set_aside,
        "failed": stats.failed,
    }
    is_consuming = history.is_consuming
    answer: dict[str, object] = {"consuming": is_consuming}
    # A probe may use any name for this machine: it needs only the status.
    if monitoring.is_asked_by_name(request):
        text = history.silence or history.state.text
        answer.update(state=text, consumed=consumed, published=monitoring.published())
    return _json(200 if is_consuming else 503, answer)


def _json(status: int, value: object) -> Answer:
    return _send(status, "application/json", json.dumps(value).encode() + b"\n")


def _metrics(monitoring: Monitoring, request: Request) -> Answer:
    # Prometheus may know a container by a name without a dot, which no web site has.
    if not monitoring.is_asked_by_name(request) and "." in _host(request):
        return _misdirected(request)
    try:
        accept = request.headers.get("accept", "")
        return _send(200, *metrics.write(monitoring.history, accept))
    except ImportError:
        return _text(501, "Metrics need prometheus-client: pip install 'fmconsume[monitoring]'")


def _page(monitoring: Monitoring, request: Request) -> Answer:
    if not monitoring.is_asked_by_name(request):
        return _misdirected(request)
    text = page.render(monitoring.history, monitoring.recent.entries)
    return _send(200, "text/html; charset=utf-8", text.encode(errors="replace"))


def _misdirected(request: Request) -> Answer:
    text = (
        f"{printable(_host(request))} may be the name of a web site that wants to read this: ask "
        f"for localhost, an IP address, {socket.gethostname()} or monitoring.address instead."
    )
    return _text(421, text)


def _not_found(monitoring: Monitoring, request: Request) -> Answer:
    return _text(404, f"There are {', '.join(_ROUTES)}.")


def _text(status: int, text: str) -> Answer:
    return _send(status, "text/plain; charset=utf-8", f"{text}\n".encode())


def _send(status: int, content_type: str, body: bytes) -> Answer:
    headers = {
        "Content-Type": content_type,
        "Content-Security-Policy": style.POLICY,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Answer(status, headers, body)


_ROUTES = {"/": _page, "/live": _live, "/ready": _ready, "/metrics": _metrics}
