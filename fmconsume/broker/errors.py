"""Turns pika's exceptions into ours: refusals, which would come again, or losses, which may pass.

Any thread may call.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Container
from typing import Any

import pika
from pika.exceptions import (
    AMQPChannelError,
    AMQPError,
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
)

from ..exceptions import (
    BadDeclaration,
    ConnectionException,
    FmconsumeError,
    PermissionException,
)
from ..log import get_logger
from ..redaction import hide_passwords
from ..text import brief, printable
from .addresses import Address

__all__ = [
    "FORBIDDEN",
    "LOSS",
    "NOT_FOUND",
    "RESOURCE_LOCKED",
    "SessionLost",
    "connect_error",
    "deprecation",
    "is_gone",
    "make_parameters",
    "reason",
    "refusal",
]

_log = get_logger(__name__)

#: connection.close codes that refuse the user or the virtual host.
_REFUSED = {403, 530}
#: The line ended during the TLS handshake, as with a proxy whose broker is down. This may pass:
#: it is no refusal of a certificate.
_NO_LINE = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
#: With TLS 1.3 the broker refuses a client certificate only after pika's handshake is done. The
#: alert then stands in the text of pika's exception.
_ALERT = re.compile(r"\[SSL: \w*ALERT_\w+\] ([^(]*)")
#: Verify codes of the checks that OpenSSL makes only in strict mode, Python's default since 3.13.
#: Source: X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA and those after it in OpenSSL 3's x509_vfy.h.
_STRICT = range(80, 94)
_STRICT_HINT = (
    "; Python 3.13 and later hold certificates to RFC 5280: make the authority's anew, with "
    "basicConstraints = critical,CA:TRUE, keyUsage = critical,keyCertSign,cRLSign and "
    "subjectKeyIdentifier, and sign the broker's with it, with authorityKeyIdentifier"
)
#: Where the broker closes a connection that is still opening, pika raises its own guess at the
#: cause. Only the text of that exception holds the broker's code and words.
_CLOSED_WHILE_OPENING = re.compile(r"ConnectionClosedByBroker: \((?P<code>\d+)\) (?P<text>.*)")
#: connection.close codes that the same declaration would meet again.
#: Source: AMQP 0-9-1, section 1.2 (syntax error, command invalid, not allowed, not implemented).
_HOPELESS = {502, 503, 530, 540}
#: channel.close codes: no permission; queue not found, sent also while the queue's node is down.
FORBIDDEN, NOT_FOUND, RESOURCE_LOCKED = 403, 404, 405
#: RabbitMQ's words for a queue that exists but cannot be reached now.
_AWAY = re.compile(r"down or inaccessible|process is (stopped|unavailable)|has crashed")
#: RabbitMQ's words, with code 541, for a kind of queue that its operators no longer permit.
_DEPRECATED = re.compile(r"Feature `(\w+)` is deprecated")
_CURES = {
    "transient_nonexcl_queues": "set durable = true, or exclusive = true",
    "global_qos": "set qos.prefetch_count only",
}


class SessionLost(Exception):
    """Raised when a session is over but another one may work.

    Attributes:
        is_by_channel: The broker closed the channel or cancelled the consumer, and nothing else.
    """

    is_by_channel = False

    def __init__(self, text: str) -> None:
        super().__init__(hide_passwords(text))


class _Loss:
    """Turns an exception of pika's in a `with` block into SessionLost."""

    # Not contextlib, which makes a generator for each entry: every wait and every settle enters.

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, exc: BaseException | None, traceback: Any) -> None:
        if not isinstance(exc, Exception) or isinstance(exc, (SessionLost, FmconsumeError)):
            return
        if not isinstance(exc, (AMQPError, OSError)):
            # For example, a log handler of the program has failed inside pika.
            _log.error("pika failed in a way that it does not name", exc_info=exc)
        lost = SessionLost(reason(exc))
        lost.is_by_channel = isinstance(exc, AMQPChannelError)
        raise lost from exc


#: The only instance. It has no state, so that any thread may enter it at any time.
LOSS = _Loss()


def make_parameters(address: Address) -> pika.URLParameters:
    """Make the parameters of one connection from the files that are on the disk now.

    Raises:
        SessionLost: A file cannot be used now. It could when the address was made, so that
            somebody may just be replacing it.
    """
    try:
        return address.parameters()
    except (ConnectionException, OSError, ValueError) as exc:
        raise SessionLost(f"{address.name}: {exc}") from exc


def connect_error(address: Address, exc: BaseException) -> Exception:
    """Tell a refusal, which would come again, from a broker that cannot be reached now.

    Returns:
        ConnectionException or SessionLost; both name the address.
    """
    error = _connect_error(address, exc)
    if isinstance(error, ConnectionException) and not address.is_current():
        return SessionLost(f"{error}; what has replaced the URL and [tls] cannot be read yet")
    return error


def _connect_error(address: Address, exc: BaseException) -> Exception:
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
    """Tell a refusal for good from a limit on connections, which may still count a dead one."""
    return code in _REFUSED and "limit" not in text.lower()


def refusal(
    obj_type: str,
    name: str,
    exc: Any,
    retry_codes: Container[int],
    forbidden: type[PermissionException] = BadDeclaration,
) -> Exception:
    """Give our exception for a request over which the broker closed the channel or connection.

    Args:
        obj_type: "queue", "exchange", "binding" or "channel".
        name: Of the object.
        exc: pika's ChannelClosedByBroker or ConnectionClosedByBroker.
        retry_codes: channel.close codes that make a SessionLost, since their cause may pass.
        forbidden: Where the user has no permission.

    Returns:
        `forbidden`, BadDeclaration or SessionLost; each names the object.
    """
    if exc.reply_code == FORBIDDEN:
        return forbidden(obj_type, name, exc)
    deprecated = deprecation(exc.reply_text)
    if deprecated:
        return BadDeclaration(obj_type, name, deprecated)
    if isinstance(exc, ConnectionClosedByBroker) and exc.reply_code not in _HOPELESS:
        return SessionLost(reason(exc))
    if exc.reply_code in retry_codes or _AWAY.search(exc.reply_text):
        return SessionLost(f"{obj_type} {name!r}: {printable(exc.reply_text)}")
    return BadDeclaration(obj_type, name, exc)


def deprecation(text: str) -> str:
    """Say in one line what to change where RabbitMQ does not permit a kind of queue; else ""."""
    found = _DEPRECATED.search(text)
    if not found:
        return ""
    cure = _CURES.get(found[1], "see RabbitMQ's list of deprecated features")
    return f"this RabbitMQ does not permit {found[1]} any more: {cure}"


def is_gone(answer: object) -> bool:
    """Tell a queue that does not exist from one whose node is down."""
    return (
        isinstance(answer, ChannelClosedByBroker)
        and answer.reply_code == NOT_FOUND
        and not _AWAY.search(answer.reply_text)
    )


def reason(exc: BaseException) -> str:
    """Say in one line what happened."""
    if isinstance(exc, (ChannelClosedByBroker, ConnectionClosedByBroker)):
        return f"{exc.reply_code} {printable(exc.reply_text)}"
    root = _root(exc)
    return brief(str(root)) or type(root).__name__


def _root(exc: BaseException) -> BaseException:
    """Find the first cause of pika's connection errors, which hold it as attribute or argument."""
    while True:
        # pika lists the errors of its attempts in order; the last one tells the present state.
        attempts = getattr(exc, "exceptions", ())[-1:]
        inner = [*attempts, getattr(exc, "exception", None), *exc.args[:1]]
        below = [each for each in inner if isinstance(each, BaseException)]
        if not below:
            return exc
        exc = below[0]
