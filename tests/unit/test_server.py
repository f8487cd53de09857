"""Tests of the HTTP server under idle, slow and hostile clients, over real connections."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.service import server as server_module
from fmconsume.service.server import Answer, Request, Server, parse
from tests.waiting import wait_until

#: More than the kernel takes for a client that does not read.
BIG = b"x" * 30_000_000

#: Who waited for other clients would wait as long as these are given.
SOON = server_module._PATIENCE


def answer(request: Request) -> Answer:
    """Answer at once, as each path asks for it."""
    if request.path == "/bug":
        raise ZeroDivisionError
    body = BIG if request.path == "/big" else f"{request.method} {request.path}".encode()
    return Answer(
        200, {"Content-Type": "text/plain", "X-Said": request.headers.get("say", "")}, body
    )


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a port of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=500) as listener:
        server = Server(listener, answer, {"/live"})
        server.start()
        yield server
        server.close(10)
        assert not server.is_alive()


@pytest.fixture
def clients(server: Server) -> Iterator[Clients]:
    """Connections to it."""
    with Clients(server) as clients:
        yield clients


class Clients(ExitStack):
    """Opens connections, and closes them in the end."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._address = server._listener.getsockname()

    def connect(self, data: bytes = b"") -> socket.socket:
        """Connect, and send something."""
        client = self.enter_context(socket.create_connection(self._address, timeout=10))
        client.sendall(data)
        return client

    def ask(self, data: bytes = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n") -> bytes:
        """Return all of an answer."""
        with self.connect(data) as client:
            return b"".join(iter(lambda: client.recv(65536), b""))

    def seconds_to_live(self) -> float:
        """Return how long a probe waits."""
        began = monotonic()
        assert self.ask().startswith(b"HTTP/1.0 200 OK\r\n")
        return monotonic() - began


def is_refused(client: socket.socket, data: bytes) -> bool:
    """Send more, and tell whether nobody takes it."""
    try:
        client.sendall(data)
    except ConnectionError:
        return True
    return False


# -- what it answers


def test_answer(clients: Clients) -> None:
    """An answer has the headers that it was given, and its length."""
    head, _, body = clients.ask(b"GET /a?b=c HTTP/1.1\r\nSay: yes\r\n\r\n").partition(b"\r\n\r\n")
    assert body == b"GET /a"
    assert head.split(b"\r\n")[:4] == [
        b"HTTP/1.0 200 OK",
        b"Content-Type: text/plain",
        b"X-Said: yes",
        b"Content-Length: 6",
    ]


def test_answer_to_head(clients: Clients) -> None:
    """HEAD has the headers of GET and no body."""
    told = clients.ask(b"HEAD /a HTTP/1.1\r\n\r\n")
    assert b"Content-Length: 7\r\n" in told
    assert told.endswith(b"\r\n\r\n")


def test_answer_whole(clients: Clients) -> None:
    """A large answer arrives whole, however slowly it is read."""
    assert clients.ask(b"GET /big HTTP/1.1\r\n\r\n").endswith(BIG)


def test_answer_in_pieces(clients: Clients) -> None:
    """A request may come byte by byte."""
    client = clients.connect()
    for number in b"GET /pieces HTTP/1.0\n\n":
        client.sendall(bytes([number]))
    assert client.makefile("rb").read().endswith(b"GET /pieces")


def test_answer_after_a_body(clients: Clients) -> None:
    """A request's body, which nobody reads, does not cost the client its answer."""
    for _ in range(5):
        told = clients.ask(b"POST /a HTTP/1.1\r\n\r\n" + b"x" * 100_000)
        assert told.endswith(b"POST /a")


def test_answer_header_of_a_client(clients: Clients) -> None:
    """What an answer repeats of a request adds no header."""
    told = clients.ask(b"GET /a HTTP/1.1\r\nSay: a\rB: c\x85d\r\n\r\n")
    assert rb"X-Said: a\rB: c\x85d" + b"\r\n" in told


def test_bug(clients: Clients, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in an answer is logged, and ends nothing."""
    assert clients.ask(b"GET /bug HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 500 ")
    assert "ZeroDivisionError" in caplog.text
    assert clients.seconds_to_live() < SOON


def test_broken_log(server: Server, clients: Clients) -> None:
    """A log handler that raises ends nothing."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("I/O operation on closed file")

    broken = Broken()
    logging.getLogger("fmconsume.service").addHandler(broken)
    try:
        clients.ask(b"GET /bug HTTP/1.1\r\n\r\n")
        assert clients.seconds_to_live() < SOON
    finally:
        logging.getLogger("fmconsume.service").removeHandler(broken)


# -- clients that are slow


@pytest.mark.parametrize("count", [4, 100, 300])
@pytest.mark.parametrize("beginning", [b"", b"GET /live HTTP/1.1\r\nHost:"])
def test_idle_clients(clients: Clients, count: int, beginning: bytes) -> None:
    """However many connections are open and idle, a probe is answered at once."""
    idle = [clients.connect(beginning) for _ in range(count)]
    assert [clients.seconds_to_live() < SOON for _ in range(3)] == [True] * 3
    assert len(idle) == count


def test_dripping_clients(clients: Clients) -> None:
    """Clients that send a byte now and then delay nobody."""
    dripping = [clients.connect(b"GET /") for _ in range(90)]
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.wait(0.005):
            for client in dripping:
                is_refused(client, b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert [clients.seconds_to_live() < SOON for _ in range(5)] == [True] * 5
    finally:
        is_over.set()
        thread.join()


def test_clients_that_do_not_read(clients: Clients) -> None:
    """Clients that ask for much and take nothing delay nobody."""
    for _ in range(100):
        clients.connect(b"GET /big HTTP/1.1\r\n\r\n")
    assert [clients.seconds_to_live() < SOON for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("data", [b"", b"GET /", b"GET /big HTTP/1.1\r\n\r\n"])
def test_patience(
    server: Server, clients: Clients, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """A client that does not ask, or does not take its answer, is dropped after a while."""
    monkeypatch.setattr(server_module, "_PATIENCE", 0.2)
    clients.connect(data)
    wait_until(lambda: server._connections)
    wait_until(lambda: not server._connections)


def test_dripping_gains_no_time(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then does not get more time for it."""
    monkeypatch.setattr(server_module, "_PATIENCE", 0.2)
    client = clients.connect()
    wait_until(lambda: is_refused(client, b"x"))


def test_rest_while_idle(server: Server, clients: Clients) -> None:
    """Without a connection the server sleeps until one comes."""
    clients.ask()
    wait_until(lambda: not server._connections)
    assert server._time_left() is None


# -- clients that mean no good


def test_crowd(server: Server, clients: Clients) -> None:
    """However many connect, the server keeps so many connections, the newest."""
    crowd = [clients.connect() for _ in range(250)]
    clients.ask()
    assert len(server._connections) <= 100
    assert crowd[0].recv(1) == b""
    crowd[-1].sendall(b"GET /a HTTP/1.1\r\n\r\n")
    assert crowd[-1].recv(12) == b"HTTP/1.0 200"


def test_hammering_clients(server: Server, clients: Clients) -> None:
    """Clients that ask without a pause take a part of one processor, and no probe's turn."""
    is_over = threading.Event()

    def hammer() -> None:
        while not is_over.is_set():
            clients_of_thread.ask(b"GET /a HTTP/1.1\r\n\r\n")

    def cpu_seconds() -> float:
        (own,) = (each for each in psutil.Process().threads() if each.id == server.native_id)
        return float(own.user_time + own.system_time)

    with Clients(server) as clients_of_thread:
        threads = [threading.Thread(target=hammer) for _ in range(8)]
        began, before = monotonic(), cpu_seconds()
        for thread in threads:
            thread.start()
        waits = [clients.seconds_to_live() for _ in range(20)]
        wait_until(lambda: monotonic() - began > 1)
        share = (cpu_seconds() - before) / (monotonic() - began)
        is_over.set()
        for thread in threads:
            thread.join()
    assert max(waits) < 1
    assert share < 0.2


def test_endless_request(clients: Clients) -> None:
    """A request without an end is read so far and no further."""
    client = clients.connect(b"GET /live HTTP/1.0\r\n")
    wait_until(lambda: is_refused(client, b"A: b\r\n" * 10_000))
    assert clients.seconds_to_live() < SOON


HOSTILE = [
    *(b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"\r\n\r\n", b"GET / \n\n", b"GET /\r\n\r\n"),
    *(b"GET /\x1b[2J HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"get / HTTP/1.1\n\n"),
    *(b"\x16\x03\x01\x02\0\x01\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    *(b"A" * 9000 + b" / HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 9000, b"\n" * 9000),
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000,
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: repr(data[:20]))
def test_hostile_request(clients: Clients, caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    """Garbage is answered with an error, and is at most a harmless line of the log."""
    caplog.set_level(logging.DEBUG, "fmconsume")
    assert clients.ask(data).startswith(b"HTTP/1.0 400 Bad Request\r\n")
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.DEBUG, None)
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 400


@given(st.binary() | st.builds(b"GET / HTTP/1.1\n%s".__mod__, st.binary()))
def test_parse_anything(received: bytes) -> None:
    """Whatever comes is a request, or none; nothing else happens."""
    request = parse(received)
    assert request is None or request.path.isprintable()


def test_parse() -> None:
    """Headers are found by their names in small letters."""
    request = parse(b"GET /a?b HTTP/1.1\r\nHost: c:80\r\nACCEPT:  d \r\nno header\r")
    assert request == ("GET", "/a", {"host": "c:80", "accept": "d", "no header": ""})
