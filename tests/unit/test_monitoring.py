"""Tests of the monitoring server, over real connections."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection

import pytest

from fmconsume.engine.state import Snapshot, State, Stats
from fmconsume.exceptions import ConfigurationException
from fmconsume.service import monitoring as monitoring_module
from fmconsume.service.monitoring import Monitoring
from tests.waiting import wait_until

CONSUMING = State("consuming", "consuming from fruit")
STATS = Stats(received=21, acknowledged=10, requeued=1, dropped=2, rejected=3, failed=4)


@pytest.fixture
def server() -> Iterator[Monitoring]:
    """A server on a port of its own."""
    with Monitoring(lambda: STATS, "localhost", 0) as server:
        yield server


@pytest.fixture
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring_module, "_PATIENCE", 0.2)


def port_of(server: Monitoring) -> int:
    """Return the port it got."""
    port: int = server._listener.getsockname()[1]
    return port


def ask(
    server: Monitoring, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Return the status, the headers and the body of an answer."""
    connection = HTTPConnection("127.0.0.1", port_of(server), timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.headers), body


def count_threads() -> int:
    """Count the servers' threads."""
    return sum(thread.name.startswith("fmconsume-monitoring") for thread in threading.enumerate())


def look(overdue: int = 0, dead_workers: int = 0) -> Snapshot:
    """Make a look at the engine."""
    return Snapshot(CONSUMING, STATS, 0, 0, 0, overdue, dead_workers, "far")


# -- what it answers


def test_live(server: Monitoring) -> None:
    """A consumer whose callbacks are in time is alive, even while it waits for its broker."""
    server.history.on_state(State("waiting", "not consuming"))
    assert ask(server, "/live")[::2] == (200, '{"status": "OK"}\n')


@pytest.mark.parametrize("trouble", ["overdue", "dead_workers"])
def test_live_hanging(server: Monitoring, trouble: str) -> None:
    """What makes systemd's watchdog act makes an orchestrator act."""
    server.history.on_tick(look(**{trouble: 1}))
    assert ask(server, "/live")[0] == 503
    server.history.on_tick(look())
    assert ask(server, "/live")[0] == 200


def test_silent_supervisor(server: Monitoring) -> None:
    """A supervisor that is dead or stuck is neither alive nor ready, whatever it said last."""
    server.history.on_state(CONSUMING)
    server.history.seen -= 100
    reason = "no sign of life from the supervisor for 100 s"
    assert ask(server, "/live")[::2] == (503, f'{{"status": "{reason}"}}\n')
    status, _, body = ask(server, "/ready")
    assert (status, json.loads(body)["consuming"], json.loads(body)["state"]) == (
        503,
        False,
        reason,
    )
    server.history.on_tick(look())
    assert (ask(server, "/live")[0], ask(server, "/ready")[0]) == (200, 200)


def test_consumer_made_long_before_it_runs() -> None:
    """The time before the start is no silence."""
    server = Monitoring(lambda: STATS, "localhost", 0)
    server.history.seen -= 100
    with server:
        assert ask(server, "/live")[0] == 200


def test_ready(server: Monitoring) -> None:
    """A consumer is ready while it consumes, whatever its mood; the answer has the counts."""
    assert ask(server, "/ready")[0] == 503
    server.history.on_state(CONSUMING)
    status, headers, body = ask(server, "/ready?from=test")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "consuming": True,
        "state": "consuming from fruit",
        "consumed": {"received": 21, "processed": 10, "dropped": 2, "rejected": 4, "failed": 4},
    }
    server.history.on_state(State("busy", "apple is in hand for 61 s"))
    assert ask(server, "/ready")[0] == 200
    server.history.on_state(State("waiting", "not consuming: refused"))
    status, _, body = ask(server, "/ready")
    assert (status, json.loads(body)["consuming"]) == (503, False)


def test_metrics(server: Monitoring) -> None:
    """Prometheus gets what it takes."""
    status, headers, body = ask(server, "/metrics", Accept="text/plain")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "fmconsume_received_total 21.0" in body


def test_metrics_without_the_library(server: Monitoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client the answer says what to install; the rest works."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    status, _, body = ask(server, "/metrics")
    assert status == 501
    assert "pip install 'fmconsume[monitoring]'" in body
    assert ask(server, "/live")[0] == 200


def test_page(server: Monitoring) -> None:
    """A person gets a page that loads nothing, runs nothing foreign, and is never kept."""
    status, headers, body = ask(server, "/")
    assert status == 200
    assert body.startswith("<!DOCTYPE html>")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]


def test_head(server: Monitoring) -> None:
    """HEAD has the headers of GET and no body."""
    status, headers, body = ask(server, "/live", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "17", "")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [("GET", "/nothing", 404), ("POST", "/", 501), ("PUT", "/live", 501)],
)
def test_nothing_else(server: Monitoring, method: str, path: str, expected: int) -> None:
    """Other paths and methods are refused."""
    assert ask(server, path, method)[0] == expected


def test_bug(
    server: Monitoring, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in an answer is logged and ends nothing."""
    monkeypatch.setattr(server.history, "stats", lambda: 1 / 0)
    with pytest.raises(ConnectionError):
        ask(server, "/ready")
    wait_until(lambda: "ZeroDivisionError" in caplog.text)
    assert ask(server, "/live")[0] == 200


# -- where it listens


@pytest.mark.parametrize(
    ("address", "clients"),
    [
        ("", ["127.0.0.1", *["::1"] * socket.has_dualstack_ipv6()]),
        ("localhost", ["127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"]),
    ],
)
def test_enter_address(address: str, clients: list[str]) -> None:
    """It listens where it is told: a name means its IPv4 address, none means everywhere."""
    with Monitoring(Stats, address, 0) as server:
        for client in clients:
            socket.create_connection((client, port_of(server)), timeout=10).close()


def test_enter_port_in_use(server: Monitoring) -> None:
    """A port that is taken is one line that says so."""
    port = port_of(server)
    reason = f"^monitoring: cannot listen at port {port} of localhost: Address already in use$"
    with pytest.raises(ConfigurationException, match=reason), Monitoring(Stats, "localhost", port):
        pass


@pytest.mark.parametrize("address", ["192.0.2.1", "no.such.host.invalid", "a..b", "x" * 80])
def test_enter_bad_address(address: str) -> None:
    """An address that is not ours is an error that names it."""
    with pytest.raises(ConfigurationException, match=f"of {address}: "):
        Monitoring(Stats, address, 0).__enter__()


def test_exit_frees_the_port() -> None:
    """After the end nobody listens, the threads are gone and the log is let go."""
    before = logging.getLogger().handlers[:]
    with Monitoring(Stats, "localhost", 0) as server:
        port = port_of(server)
        assert ask(server, "/live")[0] == 200
    with Monitoring(Stats, "localhost", port):
        pass
    wait_until(lambda: count_threads() == 0)
    assert logging.getLogger().handlers == before


# -- clients that mean no good


def is_refused(client: socket.socket, data: bytes) -> bool:
    """Send more, and tell whether nobody takes it."""
    try:
        client.sendall(data)
    except ConnectionError:
        return True
    return False


@pytest.mark.usefixtures("_no_patience")
@pytest.mark.parametrize("beginning", [b"", b"GET /live HT", b"GET / HTTP/1.0\r\nA: b\r\n"])
def test_slow_clients(server: Monitoring, beginning: bytes) -> None:
    """Clients that never finish asking are dropped, so that others get their turn."""
    with ExitStack() as stack:
        for _ in range(20):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(server))))
            slow.sendall(beginning)
        assert ask(server, "/live")[0] == 200


@pytest.mark.usefixtures("_no_patience")
def test_dripping_client(server: Monitoring) -> None:
    """A client that sends a byte now and then does not get more time for it."""
    with socket.create_connection(("127.0.0.1", port_of(server))) as client:
        wait_until(lambda: is_refused(client, b"x"))


def test_endless_request(server: Monitoring) -> None:
    """A request without an end is read so far and no further."""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as client:
        client.sendall(b"GET /live HTTP/1.0\r\n")
        wait_until(lambda: is_refused(client, b"A: b\r\n" * 10_000))
    assert ask(server, "/live")[0] == 200


@pytest.mark.parametrize(
    "request_", [b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"\r\n\r\n", b"GET / \n\n"]
)
def test_malformed_request(server: Monitoring, request_: bytes) -> None:
    """Garbage is answered with an error or not at all."""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as client:
        client.sendall(request_)
        answer = client.recv(100)
        assert b"200" not in answer
    assert ask(server, "/live")[0] == 200


def test_many_clients(server: Monitoring) -> None:
    """However many ask at once, the same few threads answer them."""
    wait_until(lambda: count_threads() == 4)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", port_of(server)), timeout=30)
            )
            for _ in range(60)
        ]
        for client in clients:
            client.sendall(b"GET /live HTTP/1.0\r\n\r\n")
        assert all(client.recv(12) == b"HTTP/1.0 200" for client in clients)
        assert count_threads() == 4
