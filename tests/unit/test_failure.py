"""Tests of what pika's exceptions mean while connecting."""

from __future__ import annotations

import errno
import ssl

import pika
import pytest
from pika.adapters.utils.connection_workflow import (
    AMQPConnectorAMQPHandshakeError,
    AMQPConnectorSocketConnectError,
    AMQPConnectorStackTimeout,
    AMQPConnectorTransportSetupError,
)
from pika.exceptions import (
    AMQPConnectionError,
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    StreamLostError,
)

from fmconsume.engine.address import Address
from fmconsume.engine.failure import SessionLost, connect_error, reason
from fmconsume.exceptions import ConnectionException

ADDRESS = Address("amqp://ann@h:5672 (virtual host '/')", pika.URLParameters)

REFUSED_LOGIN = ConnectionClosedByBroker(403, "ACCESS_REFUSED - Login was refused")
NO_VHOST = ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost nowhere not found")


def closing(error: ConnectionClosedByBroker) -> str:
    """Write a close as pika does where it guesses what one meant."""
    return f"ConnectionClosedByBroker: ({error.reply_code}) {error.reply_text!r}"


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("PLAIN"),
        REFUSED_LOGIN,
        NO_VHOST,
        ProbableAuthenticationError(closing(REFUSED_LOGIN)),
        ProbableAccessDeniedError(closing(NO_VHOST)),
        AMQPConnectorAMQPHandshakeError(REFUSED_LOGIN),
        AMQPConnectionError(AMQPConnectorAMQPHandshakeError(NO_VHOST)),
        ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate"),
        AMQPConnectorTransportSetupError(ssl.SSLError(1, "alert unknown ca")),
    ],
    ids=repr,
)
def test_connect_error_refused(error: Exception) -> None:
    """What the broker would refuse again ends the consumer, with broker and reason named."""
    result = connect_error(ADDRESS, error)
    assert isinstance(result, ConnectionException)
    assert str(result).startswith(ADDRESS.name)
    words = ("Login was refused", "vhost nowhere", "self-signed", "unknown ca", "PLAIN")
    assert any(word in str(result) for word in words)
    assert "\n" not in str(result)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ECONNREFUSED, "Connection refused"),
        AMQPConnectionError(
            AMQPConnectorSocketConnectError(OSError(errno.ECONNREFUSED, "Connection refused"))
        ),
        AMQPConnectorSocketConnectError(TimeoutError("timed out")),
        AMQPConnectorStackTimeout("Timeout during AMQP handshake"),
        StreamLostError("Stream connection lost: ConnectionResetError(104, 'reset')"),
        IncompatibleProtocolError("The protocol returned by the server is not supported"),
        ConnectionClosedByBroker(320, "CONNECTION_FORCED - broker shutting down"),
        ConnectionClosedByBroker(541, "INTERNAL_ERROR"),
        ProbableAuthenticationError("StreamLostError: ('reset',)"),
        ProbableAccessDeniedError(closing(ConnectionClosedByBroker(320, "CONNECTION_FORCED"))),
        AMQPConnectorTransportSetupError(ssl.SSLEOFError(8, "EOF in violation of protocol")),
        ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed"),
        AMQPConnectionError(),
    ],
    ids=repr,
)
def test_connect_error_passing(error: Exception) -> None:
    """A broker that is not there now is tried again; the line names it and the reason."""
    result = connect_error(ADDRESS, error)
    assert isinstance(result, SessionLost)
    assert str(result).startswith(f"{ADDRESS.name}: ")
    assert len(str(result)) > len(ADDRESS.name) + 2
    assert "\n" not in str(result)


def test_connect_error_shows_root() -> None:
    """The reason is that of the error below, not its wrapping."""
    refused = OSError(errno.ECONNREFUSED, "Connection refused")
    result = connect_error(ADDRESS, AMQPConnectionError(AMQPConnectorSocketConnectError(refused)))
    assert str(result) == f"{ADDRESS.name}: [Errno {errno.ECONNREFUSED}] Connection refused"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ChannelClosedByBroker(406, "PRECONDITION_FAILED"), "406 PRECONDITION_FAILED"),
        (ConnectionClosedByBroker(320, "CONNECTION_FORCED"), "320 CONNECTION_FORCED"),
        (StreamLostError("two\nlines"), "two lines"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=repr,
)
def test_reason_one_line(error: Exception, expected: str) -> None:
    """A reason is one line and never empty."""
    assert reason(error) == expected


@pytest.mark.parametrize(
    ("error", "is_unreadable"),
    [
        (OverflowError("timestamp out of range"), True),
        (ValueError("year 70000 is out of range"), True),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (BrokenPipeError(32, "Broken pipe"), False),
        (TimeoutError("timed out"), False),
        (OSError(113, "No route to host"), False),
        (ssl.SSLError(1, "[SSL] internal error"), False),
    ],
)
def test_reason_unreadable_headers(error: Exception, is_unreadable: bool) -> None:
    """Headers that pika cannot read are told from a line that broke."""
    lost = StreamLostError(f"Stream connection lost: {error!r}")
    assert ("head of the queue" in reason(lost)) is is_unreadable


def test_connect_error_connection_limit() -> None:
    """A limit on connections passes: one that died may still count."""
    text = "NOT_ALLOWED - access to vhost 'v' refused: connection limit (1) is reached"
    cause = ConnectionClosedByBroker(530, text)
    assert isinstance(connect_error(ADDRESS, cause), SessionLost)
