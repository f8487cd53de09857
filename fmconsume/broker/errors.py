"""What pika's exceptions mean: a refusal that would be met again, or a loss that may pass.

Any thread may call.
"""

from __future__ import annotations

import re
import ssl

import pika
from pika.exceptions import (
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
)

from ..exceptions import ConnectionException
from ..redaction import hide_passwords
from ..text import brief, printable
from .addresses import Address

__all__ = ["SessionLost", "connect_error", "make_parameters", "reason"]

#: connection.close codes that refuse the user or the virtual host.
_REFUSED = {403, 530}
#: A line that ends in the TLS handshake says nothing of certificates: a proxy without a broker.
_NO_LINE = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
#: With TLS 1.3 the broker refuses a client certificate only after pika's handshake is done.
_ALERT = re.compile(r"\[SSL: \w*ALERT_\w+\] ([^(]*)")
#: What OpenSSL refuses only where it is strict, as Python has it since version 3.13.
#: Source: X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA and those after it in OpenSSL 3's x509_vfy.h.
_STRICT = range(80, 94)
_STRICT_HINT = (
    "; Python 3.13 and later hold certificates to RFC 5280: make the authority's anew, with "
    "basicConstraints = critical,CA:TRUE, keyUsage = critical,keyCertSign,cRLSign and "
    "subjectKeyIdentifier, and sign the broker's with it, with authorityKeyIdentifier"
)
#: pika guesses what a close while opening means, and keeps the broker's words in the text.
_CLOSED_WHILE_OPENING = re.compile(r"ConnectionClosedByBroker: \((?P<code>\d+)\) (?P<text>.*)")


class SessionLost(Exception):
    """Raised when a session is over but another one may work.

    Attributes:
        is_by_channel: The broker closed the channel or cancelled the consumer, and nothing else.
    """

    is_by_channel = False

    def __init__(self, text: str) -> None:
        super().__init__(hide_passwords(text))


def make_parameters(address: Address) -> pika.URLParameters:
    """Make the parameters of one connection from what is on the disk now.

    Raises:
        SessionLost: A file is of no use now. It was when the address was made, and
            replacing certificates takes a moment.
    """
    try:
        return address.parameters()
    except (ConnectionException, OSError, ValueError) as exc:
        raise SessionLost(f"{address.name}: {exc}") from exc


def connect_error(address: Address, exc: BaseException) -> Exception:
    """Tell a refusal, which would be met again, from a broker that is not there now.

    Returns:
        ConnectionException or SessionLost; both name the address.
    """
    cause = _root(exc)
    text = f"{address.name}: {reason(cause)}"
    if isinstance(cause, _NO_LINE):
        return SessionLost(text)
    if getattr(cause, "verify_code", 0) in _STRICT:
        return ConnectionException(reason=text + _STRICT_HINT)
    if isinstance(cause, (ssl.SSLError, AuthenticationError)):
        return ConnectionException(reason=text)
    if isinstance(cause, ConnectionClosedByBroker) and _is_refusal(
        cause.reply_code, cause.reply_text
    ):
        return ConnectionException(reason=text)
    alert = _ALERT.search(str(cause))
    if alert:
        return ConnectionException(reason=f"{address.name}: {alert[1].strip()}")
    closed = _CLOSED_WHILE_OPENING.search(str(cause))
    if closed and _is_refusal(int(closed["code"]), closed["text"]):
        return ConnectionException(
            reason=f"{address.name}: {closed['code']} {printable(closed['text'])}"
        )
    return SessionLost(text)


def _is_refusal(code: int, text: str) -> bool:
    """Tell a refusal for good from a limit on connections, which a dead one may still fill."""
    return code in _REFUSED and "limit" not in text.lower()


def reason(exc: BaseException) -> str:
    """Say in one line what happened."""
    if isinstance(exc, (ChannelClosedByBroker, ConnectionClosedByBroker)):
        return f"{exc.reply_code} {printable(exc.reply_text)}"
    root = _root(exc)
    return brief(str(root)) or type(root).__name__


def _root(exc: BaseException) -> BaseException:
    """Unwrap pika's connection errors, which carry the errors below as attributes or argument."""
    while True:
        # What a workflow carries is in the order of its attempts.
        attempts = getattr(exc, "exceptions", ())[-1:]
        inner = [*attempts, getattr(exc, "exception", None), *exc.args[:1]]
        below = [each for each in inner if isinstance(each, BaseException)]
        if not below:
            return exc
        exc = below[0]
