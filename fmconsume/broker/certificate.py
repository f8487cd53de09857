"""Reads the dates of a certificate, and loads a key without asking for its password.

Python's ssl module alone does neither. Pure but for reading files: any thread may call.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import datetime, timezone

__all__ = ["load_pair", "validity"]

#: DER tags and time formats. Source: RFC 5280, sections 4.1 and 4.1.2.5.
_VERSION = 0xA0
_TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}


def validity(pem: str) -> tuple[datetime, datetime]:
    """Give the moments between which the first certificate of a PEM file is valid.

    Args:
        pem: The content of the file.

    Raises:
        ValueError: There is no certificate in it, or one that is damaged.
    """
    begin, end = pem.find(ssl.PEM_HEADER), pem.find(ssl.PEM_FOOTER)
    if begin < 0 or end < begin:
        raise ValueError("it holds no certificate in PEM format")
    try:
        return _read_dates(ssl.PEM_cert_to_DER_cert(pem[begin : end + len(ssl.PEM_FOOTER)]))
    except Exception as exc:  # Indexing, decoding and unpacking each raise their own on garbage.
        raise ValueError("the certificate in it is damaged or cut off") from exc


def _read_dates(der: bytes) -> tuple[datetime, datetime]:
    ((_, certificate),) = _elements(der)
    _, to_be_signed = next(_elements(certificate))
    _serial, _algorithm, _issuer, (_, dates), *_ = (
        element for element in _elements(to_be_signed) if element[0] != _VERSION
    )
    not_before, not_after = (_time(*element) for element in _elements(dates))
    return not_before, not_after


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the tag and the content of each DER element."""
    at = 0
    while at < len(der):
        tag, size = der[at], der[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(der[at : at + count], "big")
            at += count
        yield tag, der[at : at + size]
        at += size


def _time(tag: int, text: bytes) -> datetime:
    return datetime.strptime(text.decode("ascii"), _TIMES[tag]).replace(tzinfo=timezone.utc)


def load_pair(context: ssl.SSLContext, certfile: str, keyfile: str | None) -> None:
    """Load a certificate and its key into a context; refuse an encrypted key.

    OpenSSL alone would ask for the password of an encrypted key on the terminal.

    Args:
        keyfile: None where the certificate's file holds the key too.

    Raises:
        ValueError: The key is encrypted, malformed, or that of another certificate.
        OSError: A file cannot be read.
    """
    try:
        context.load_cert_chain(certfile, keyfile, _refuse_to_ask)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"it is not the key of the certificate in {certfile}") from exc
        raise ValueError("no certificate with its key in PEM format") from exc


def _refuse_to_ask() -> str:
    raise ValueError("it is encrypted, and nobody is there to type a password; decrypt it")
