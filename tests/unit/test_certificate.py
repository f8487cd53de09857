"""Tests of what is read from certificates, above all from those that are none."""

from __future__ import annotations

import base64
import ssl
from contextlib import suppress
from datetime import datetime, timezone

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.broker.certificate import validity

BEGIN = datetime(2019, 3, 4, 5, 6, tzinfo=timezone.utc)
END = datetime(2051, 7, 8, tzinfo=timezone.utc)
CLIENT = trustme.CA().issue_cert("client.example", not_before=BEGIN, not_after=END)
PEM = CLIENT.cert_chain_pems[0].bytes().decode()
DER = ssl.PEM_cert_to_DER_cert(PEM)


def wrap(der: bytes) -> str:
    """Write PEM, whatever is in it."""
    return f"{ssl.PEM_HEADER}\n{base64.encodebytes(der).decode()}{ssl.PEM_FOOTER}\n"


def test_validity() -> None:
    """Dates before and after 2050, which are written in different ways, are read."""
    assert validity(PEM) == (BEGIN, END)
    assert validity(f"a comment\n{PEM}{PEM}") == (BEGIN, END)


@pytest.mark.parametrize(
    "pem",
    [
        "",
        ssl.PEM_HEADER,
        f"{ssl.PEM_FOOTER}{ssl.PEM_HEADER}",
        f"{ssl.PEM_HEADER}{ssl.PEM_FOOTER}",
        wrap(b""),
        wrap(b"\x30"),
        wrap(b"\x30\xff"),
        wrap(DER[:1]),
        wrap(DER[:20]),
        wrap(DER.replace(b"190304050600Z", b"190004050600Z")),
        wrap(DER.replace(b"20510708000000Z", b"00000708000000Z")),
        wrap(DER.replace(b"190304050600Z", "19030Z".encode("utf-16"))),
        CLIENT.private_key_pem.bytes().decode(),
        PEM.encode("utf-16").decode("latin-1"),
        PEM.replace("MII", "\xe9\xe9\xe9"),
    ],
    ids=range(15),
)
def test_validity_garbage(pem: str) -> None:
    """What is no certificate is a ValueError that says so."""
    with pytest.raises(ValueError, match=r"no certificate in PEM format|damaged or cut off"):
        validity(pem)


@given(
    st.lists(st.tuples(st.integers(0, len(DER) - 1), st.binary(max_size=3)), max_size=4),
    st.integers(0, len(DER)),
)
def test_validity_mutated(changes: list[tuple[int, bytes]], length: int) -> None:
    """Whatever is changed in a certificate or cut off, it has dates or is a ValueError."""
    der = bytearray(DER)
    for at, piece in changes:
        der[at : at + len(piece)] = piece
    with suppress(ValueError):
        begin, end = validity(wrap(bytes(der[:length])))
        assert begin.tzinfo is end.tzinfo is timezone.utc
