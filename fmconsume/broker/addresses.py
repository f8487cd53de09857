"""Gives each broker a name that is safe to print and connection parameters; orders the brokers.

Any thread may call `parse_address`; an `Addresses` belongs to one thread.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Callable, NamedTuple, Optional

import pika

from ..amqp_url import check_quoting, tls_options
from ..exceptions import ConnectionException
from ..redaction import redact_value
from .certificate import load_pair, validity

__all__ = ["Address", "Addresses", "parse_address"]

_Tls = Mapping[str, Optional[str]]


class Address(NamedTuple):
    """Where a broker is and how to connect to it.

    Attributes:
        name: User, host, port and virtual host, without the password.
        parameters: Makes the parameters of one connection. It reads the TLS files each
            time, since certificates are replaced while a consumer runs. Raises as
            `parse_address` does. Any thread may call it.
        is_current: Tells whether they are what the configuration says now. It may be half written;
            then the broker's refusal of those of before may pass. Any thread may call it.
    """

    name: str
    parameters: Callable[[], pika.URLParameters]
    is_current: Callable[[], bool] = lambda: True


class Addresses:
    """Brokers in the order in which they are tried: the last one that worked comes first.

    Its owner may call `prefer` while it iterates: an iteration keeps the order it began with.
    """

    def __init__(self, addresses: Iterable[Address]) -> None:
        self._addresses = list(addresses)

    def __iter__(self) -> Iterator[Address]:
        return iter(tuple(self._addresses))

    def __len__(self) -> int:
        return len(self._addresses)

    def __getitem__(self, index: int) -> Address:
        return self._addresses[index]

    def prefer(self, address: Address) -> None:
        """Try this one first from now on."""
        self._addresses.remove(address)
        self._addresses.insert(0, address)


def parse_address(
    url: str,
    tls: _Tls,
    client_properties: Mapping[str, Any],
    look_up: Callable[[], tuple[str, _Tls]] | None = None,
) -> Address:
    """Read an AMQP URL, and check that its parameters and the TLS files can be used now.

    Args:
        url: As pika.URLParameters reads it; amqps uses `tls` unless the URL has ssl_options.
        tls: Paths under "ca_cert", "certfile" and "keyfile", None where unset.
        client_properties: Shown to the broker's administrators.
        look_up: Called for each connection: gives the URL, with the current password, and
            `tls`. None uses the arguments `url` and `tls` for every connection.

    Raises:
        ValueError: The URL does not parse, or a certificate file cannot be used.
        ConnectionException: The client certificate has expired, or is not valid yet.
    """
    properties = dict(client_properties)

    def parameters() -> pika.URLParameters:
        return _read(*(look_up() if look_up else (url, tls)), properties)

    return Address(_name(_read(url, tls, properties)), parameters)


def _read(url: str, tls: _Tls, client_properties: dict[str, Any]) -> pika.URLParameters:
    check_quoting(url)
    options = tls_options(url)
    _check_pair_in_url(options)
    try:
        parameters = pika.URLParameters(url)
    except (OSError, TypeError) as exc:
        if options:
            raise ValueError(f"ssl_options cannot be used: {exc}") from exc
        # pika's answer to a user without a password.
        raise ValueError("the URL names a user but no password") from exc
    # One attempt: pika's own retries sleep where no stop can reach.
    parameters.connection_attempts = 1
    parameters.client_properties = client_properties
    # Where the URL has ssl_options, pika has applied them itself.
    if parameters.ssl_options and not options:
        _secure(parameters, tls)
    return parameters


def _check_pair_in_url(options: Mapping[str, Any]) -> None:
    """Refuse an encrypted key in the URL: pika would ask for its password on the terminal."""
    if "certfile" in options and not options.get("password"):
        certfile, keyfile = options["certfile"], options.get("keyfile")
        with _naming("ssl_options", keyfile or certfile):
            load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certfile, keyfile)


def _secure(parameters: pika.URLParameters, tls: _Tls) -> None:
    """Set TLS 1.2 or later with a checked host name, and EXTERNAL with a client certificate."""
    with _naming("tls.ca_cert", tls["ca_cert"]):
        context = ssl.create_default_context(cafile=tls["ca_cert"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls["certfile"] and tls["keyfile"]:
        with _naming("tls.certfile", tls["certfile"]):
            _check_dates(tls["certfile"])
        with _naming("tls.keyfile", tls["keyfile"]):
            load_pair(context, tls["certfile"], tls["keyfile"])
        parameters.credentials = pika.credentials.ExternalCredentials()
    parameters.ssl_options = pika.SSLOptions(context, parameters.host)


def _check_dates(certfile: str) -> None:
    """Refuse a client certificate outside its dates, in clearer words than the broker's."""
    with open(certfile, encoding="latin-1") as file:
        not_before, not_after = validity(file.read())
    now = datetime.now(timezone.utc)
    if not not_before <= now <= not_after:
        what = "expired on" if now > not_after else "is not valid before"
        when = not_after if now > not_after else not_before
        raise ConnectionException(
            reason=f"tls.certfile: {redact_value(certfile)} {what} {when:%Y-%m-%d %H:%M} UTC"
        )


@contextmanager
def _naming(key: str, path: object) -> Iterator[None]:
    """Name the key and the file when something is wrong with them."""
    try:
        yield
    except (OSError, ValueError, TypeError) as exc:
        reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
        # Without its cause, which shows the path unredacted: it may be a URL with a password.
        raise ValueError(f"{key}: cannot use {redact_value(str(path))}: {reason}") from None


def _name(parameters: pika.URLParameters) -> str:
    user = getattr(parameters.credentials, "username", "")
    scheme = "amqps" if parameters.ssl_options else "amqp"
    vhost = parameters.virtual_host
    return f"{scheme}://{user}@{parameters.host}:{parameters.port} (virtual host {vhost!r})"
