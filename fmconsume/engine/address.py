"""One broker address: its connection parameters, and a name that is safe to print."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, NamedTuple

import pika

from ..exceptions import ConnectionException
from .certificate import validity

__all__ = ["Address", "parse_address"]


class Address(NamedTuple):
    """Where a broker is and how to connect to it.

    Attributes:
        name: User, host, port and virtual host, without the password.
    """

    name: str
    parameters: pika.URLParameters


def parse_address(
    url: str, tls: Mapping[str, str | None], client_properties: Mapping[str, Any]
) -> Address:
    """Read an AMQP URL.

    Args:
        url: As pika.URLParameters takes it; amqps uses `tls`.
        tls: Paths under "ca_cert", "certfile" and "keyfile", None where unset.
        client_properties: Shown to the broker's administrators.

    Raises:
        ValueError: The URL does not parse, or a certificate file cannot be used.
        ConnectionException: The client certificate has expired, or is not valid yet.
    """
    try:
        parameters = pika.URLParameters(url)
    except TypeError as exc:  # pika's answer to a user without a password
        raise ValueError("the URL names a user but no password") from exc
    # One attempt: pika's own retries sleep where no stop can reach.
    parameters.connection_attempts = 1
    parameters.client_properties = dict(client_properties)
    # TLS settings inside the URL are pika's to read.
    if parameters.ssl_options and "ssl_options=" not in url:
        _secure(parameters, tls)
    return Address(_name(parameters), parameters)


def _secure(parameters: pika.URLParameters, tls: Mapping[str, str | None]) -> None:
    """Set TLS 1.2 or later with a checked host name, and EXTERNAL with a client certificate."""
    with _naming("ca_cert", tls):
        context = ssl.create_default_context(cafile=tls["ca_cert"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls["certfile"] and tls["keyfile"]:
        with _naming("certfile", tls):
            _check_dates(tls["certfile"])
        with _naming("keyfile", tls):
            context.load_cert_chain(tls["certfile"], tls["keyfile"])
        parameters.credentials = pika.credentials.ExternalCredentials()
    parameters.ssl_options = pika.SSLOptions(context, parameters.host)


def _check_dates(certfile: str) -> None:
    """Refuse a client certificate that the broker would refuse in fewer words."""
    with open(certfile, encoding="latin-1") as file:
        not_before, not_after = validity(file.read())
    now = datetime.now(timezone.utc)
    if not not_before <= now <= not_after:
        what = "expired on" if now > not_after else "is not valid before"
        when = not_after if now > not_after else not_before
        raise ConnectionException(
            reason=f"tls.certfile: {certfile} {what} {when:%Y-%m-%d %H:%M} UTC"
        )


@contextmanager
def _naming(key: str, tls: Mapping[str, str | None]) -> Iterator[None]:
    """Name the key and the file when something is wrong with them."""
    try:
        yield
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
        raise ValueError(f"tls.{key}: cannot use {tls[key]}: {reason}") from exc


def _name(parameters: pika.URLParameters) -> str:
    user = getattr(parameters.credentials, "username", "")
    scheme = "amqps" if parameters.ssl_options else "amqp"
    vhost = parameters.virtual_host
    return f"{scheme}://{user}@{parameters.host}:{parameters.port} (virtual host {vhost!r})"
