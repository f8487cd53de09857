"""Tests of the monitoring server, over real connections."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from fmconsume.engine.states import Phase, Snapshot, State, Stats
from fmconsume.exceptions import ConfigurationException, UnavailableException
from fmconsume.service.history import History
from fmconsume.service.monitoring import Monitoring
from fmconsume.service.server import Request
from tests.waiting import wait_until

CONSUMING = State(Phase.CONSUMING, "consuming from fruit")
STATS = Stats(
    received=26, acknowledged=10, requeued=1, dropped=2, rejected=3, set_aside=6, failed=4
)


@pytest.fixture
def server() -> Iterator[Monitoring]:
    """A server on a port of its own."""
    with Monitoring(History(lambda: STATS), "localhost", 0) as server:
        yield server


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
    return Snapshot(CONSUMING, STATS, overdue=overdue, dead_workers=dead_workers, broker="far")


# -- what it answers


def test_live(server: Monitoring) -> None:
    """A consumer whose callbacks are in time is alive, even while it waits for its broker."""
    server.history.on_state(State(Phase.WAITING, "not consuming"))
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
    server = Monitoring(History(lambda: STATS), "localhost", 0)
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
        "consumed": {"received": 26, "processed": 10, "dropped": 2, "rejected": 10, "failed": 4},
        "published": 0,
    }
    server.history.on_state(State(Phase.BUSY, "apple is in hand for 61 s"))
    assert ask(server, "/ready")[0] == 200
    for phase, expected in ((Phase.STUCK, 503), (Phase.PARTLY_STUCK, 200)):
        server.history.on_state(State(phase, "apple runs for 61 s"))
        status, _, body = ask(server, "/ready")
        assert (status, json.loads(body)["state"]) == (expected, "apple runs for 61 s")
    server.history.on_state(State(Phase.WAITING, "not consuming: refused"))
    status, _, body = ask(server, "/ready")
    assert (status, json.loads(body)["consuming"]) == (503, False)


def test_metrics(server: Monitoring) -> None:
    """Prometheus gets what it takes."""
    status, headers, body = ask(server, "/metrics", Accept="text/plain")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "fmconsume_received_total 26.0" in body


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
    assert ask(server, "/ready")[0] == 500
    assert "ZeroDivisionError" in caplog.text
    assert ask(server, "/live")[0] == 200


# -- whom it tells


NAME = socket.gethostname().lower()


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8070", "localhost.", "127.0.0.1:80", "[::1]:8070", "10.1.2.3"),
        *(NAME, f"{NAME.upper()}:8070", "fruit.example.com", "Fruit.Example.Com:8070", ""),
    ],
)
def test_host_of_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for an address, or for a name of this machine, is shown everything."""
    monkeypatch.setattr(socket, "getfqdn", lambda: "fruit.example.com")
    with Monitoring(History(lambda: STATS), "localhost", 0) as server:
        wait_until(lambda: "fruit.example.com" in server._names)
        for path in ("/", "/metrics", "/live"):
            assert ask(server, path, Host=host)[0] == 200
        assert "state" in json.loads(ask(server, "/ready", Host=host)[2])


def test_host_configured() -> None:
    """The name in monitoring.address is one of this machine."""
    server = Monitoring(History(lambda: STATS), "Consumer.Example.com", 0)
    request = Request("GET", "/", {"host": "consumer.example.com:80"})
    assert server.is_asked_by_name(request)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8070", "localhost.evil.example", "127.0.0.1.evil.example"),
        *(f"{NAME}.evil.example", "x\x1b[2J.example", "1.2.3.4.5"),
    ],
)
def test_host_of_a_web_site(server: Monitoring, host: str) -> None:
    """A web site that lets its name mean this machine reads nothing of it in a browser."""
    server.history.on_state(CONSUMING)
    for path in ("/", "/metrics"):
        status, _, body = ask(server, path, Host=host)
        assert status == 421
        assert "ask for localhost" in body
        assert "\x1b" not in body
    status, _, body = ask(server, "/ready", Host=host)
    assert (status, body) == (200, '{"consuming": true}\n')
    assert ask(server, "/live", Host=host)[0] == 200


def test_host_of_a_container(server: Monitoring) -> None:
    """Prometheus may ask for a container by a name that only its network knows."""
    assert ask(server, "/metrics", Host="consumer:8070")[0] == 200
    assert ask(server, "/", Host="consumer:8070")[0] == 421


def test_no_host(server: Monitoring) -> None:
    """Browsers always say whom they ask for; who does not is no browser."""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.0 200"


def test_hostile_accept(server: Monitoring, caplog: pytest.LogCaptureFixture) -> None:
    """A header that makes no sense costs no traceback in the log."""
    accept = "application/openmetrics-text; version=soup"
    status, headers, _ = ask(server, "/metrics", Accept=accept)
    assert (status, headers["Content-Type"][:10]) == (200, "text/plain")
    assert caplog.records == []


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
    with Monitoring(History(Stats), address, 0) as server:
        for client in clients:
            socket.create_connection((client, port_of(server)), timeout=10).close()


def test_enter_port_in_use(server: Monitoring) -> None:
    """A port that is taken is one line that says so."""
    port = port_of(server)
    reason = f"^monitoring: cannot listen at port {port} of localhost: Address already in use$"
    with (
        pytest.raises(UnavailableException, match=reason),
        Monitoring(History(Stats), "localhost", port),
    ):
        pass


def test_enter_url_as_address() -> None:
    """A URL that stands where an address should is shown without its password."""
    with pytest.raises(UnavailableException, match=r"80 of u:\*\*\*@h: ") as caught:
        Monitoring(History(Stats), "u:se cret@h", 80).__enter__()
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("192.0.2.1", UnavailableException),
        ("no.such.host.invalid", UnavailableException),
        ("a..b", ConfigurationException),
        ("x" * 80, ConfigurationException),
    ],
)
def test_enter_bad_address(address: str, error: type[Exception]) -> None:
    """An address that is not ours, or is none, is an error that names it."""
    with pytest.raises(error, match=f"of {address}: "):
        Monitoring(History(Stats), address, 0).__enter__()


def test_exit_frees_the_port() -> None:
    """After the end nobody listens, the threads are gone and the log is let go."""
    before = logging.getLogger().handlers[:]
    with Monitoring(History(Stats), "localhost", 0) as server:
        port = port_of(server)
        assert ask(server, "/live")[0] == 200
    with Monitoring(History(Stats), "localhost", port):
        pass
    wait_until(lambda: count_threads() == 0)
    assert logging.getLogger().handlers == before
