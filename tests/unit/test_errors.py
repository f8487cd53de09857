"""Tests of what pika's exceptions mean while connecting."""

from __future__ import annotations

import errno
import ssl
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pika
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
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

from fmconsume.broker.addresses import Address
from fmconsume.broker.errors import SessionLost, connect_error, reason
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


def test_connect_error_connection_limit() -> None:
    """A limit on connections passes: one that died may still count."""
    text = "NOT_ALLOWED - access to vhost 'v' refused: connection limit (1) is reached"
    cause = ConnectionClosedByBroker(530, text)
    assert isinstance(connect_error(ADDRESS, cause), SessionLost)


# -- certificates that only a strict look refuses ----------------------------------------

_CRITICAL = x509.BasicConstraints(ca=True, path_length=None), True
_UNCRITICAL = x509.BasicConstraints(ca=True, path_length=None), False
_USAGE = x509.KeyUsage(False, False, False, False, False, True, True, False, False), True


def sign(
    subject: str, signer: Any, *extensions: tuple[x509.ExtensionType, bool]
) -> x509.Certificate:
    """Make the certificate of an authority, or one that it signs, all with the same key."""
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (subject, "ca")]
    now, day = datetime.now(timezone.utc), timedelta(days=1)
    builder = x509.CertificateBuilder(names[1], names[0], signer.public_key(), 1, now, now + day)
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(signer, hashes.SHA256())


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Do a handshake in memory."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, server_hostname="localhost"),
        server.wrap_bio(there, back, server_side=True),
    ]
    for end in ends * 3:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()


@pytest.mark.parametrize(
    ("authority", "is_identified", "complaint"),
    [
        ([_UNCRITICAL, _USAGE], True, "Basic Constraints of CA cert not marked critical"),
        ([_CRITICAL], True, "CA cert does not include key usage extension"),
        ([_CRITICAL, _USAGE], False, "Missing Authority Key Identifier"),
    ],
)
@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO < (3,), reason="OpenSSL 1 has no such checks")
def test_connect_error_strict(
    tmp_path: Path, authority: list[Any], is_identified: bool, complaint: str
) -> None:
    """An authority that only Python 3.13 and later refuse is told with the cure."""
    key = ec.generate_private_key(ec.SECP256R1())
    own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False
    signer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False
    name = x509.SubjectAlternativeName([x509.DNSName("localhost")]), False
    root = sign("ca", key, *authority, own_id).public_bytes(Encoding.PEM)
    leaf = sign("localhost", key, name, *([signer_id] if is_identified else []))
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        leaf.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    client = ssl.create_default_context(cadata=root.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shake_hands(client, server)
    text = str(connect_error(ADDRESS, AMQPConnectorTransportSetupError(caught.value)))
    assert complaint in text
    assert "Python 3.13 and later hold certificates to RFC 5280" in text
    assert "keyUsage = critical,keyCertSign,cRLSign" in text


def test_connect_error_not_strict() -> None:
    """An authority that nobody trusts is no matter of strictness."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
    error.verify_code = 18
    assert "3.13" not in str(connect_error(ADDRESS, error))
