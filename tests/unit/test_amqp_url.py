"""Tests of what an AMQP URL may hold."""

from __future__ import annotations

import subprocess
import sys
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.amqp_url import check_quoting, is_amqp_url, tls_options


@pytest.mark.parametrize(
    "url",
    [
        "amqp://",
        "AMQPS://ann:@h/%2Fv",
        "amqp://ann:secret@[::1]:5673/v?heartbeat=5",
        "amqp://ann:se%2Fc,ret@h",
        "amqps://h/?ssl_options={'cafile': '/nowhere/a@b'}&heartbeat=5",
        "amqps://h?ssl_options={'cafile': '/nowhere/a@b'}",
    ],
)
def test_is_amqp_url_good(url: str) -> None:
    """Whatever pika can use is an AMQP URL; the files in it need not exist."""
    assert is_amqp_url(url)


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        b"amqp://h",
        "",
        "h",
        "amqp:ann:secret@h",
        "http://h",
        "amqp://h:port",
        "amqp://[h",
        "amqp://ann@h",
        "amqp://ann:12/cret@h",
        "amqp://ann:12/cr#et@h",
        "amqp://ann:12#cret@h",
        "amqp://ann:12?cret@h",
        "amqp://one,two",
        "amqp://one,amqp://two",
        "amqp://?hearbeat=5",
        "amqp://?heartbeat=often",
        "amqp://?heartbeat=5&heartbeat=6",
        "amqps://h?ssl_options={",
        "amqps://h?ssl_options=5",
    ],
)
def test_is_amqp_url_bad(value: object) -> None:
    """Anything else is none."""
    assert not is_amqp_url(value)


@given(value=st.text() | st.text().map("amqp://".__add__) | st.integers() | st.binary())
def test_is_amqp_url_never_raises(value: object) -> None:
    """Whatever the value is, the answer is yes or no."""
    assert is_amqp_url(value) in (True, False)


def test_amqp_url_imports_no_pika() -> None:
    """Importing the module does not import pika, which is slow."""
    code = "import fmconsume.amqp_url as it; print('pika' in vars(it))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("url", ["", "amqp://", "amqp://a:b%40@h:1/v", "amqp://h/v?locale=a@b"])
def test_check_quoting_good(url: str) -> None:
    """A quoted password, and an "@" in a parameter, are let through."""
    check_quoting(url)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://a:se/cret@h",
        "amqp://a:12/cret@h",
        "amqp://a:12/#cret@h",
        "amqp://a:[cret@h",
        "amqp://a:se#cret@h",
        "amqp://a:se?cret@h",
        "a:cret@h",
    ],
)
def test_check_quoting_bad(url: str) -> None:
    """An unquoted password is a ValueError that shows no part of it, also in its cause."""
    with pytest.raises(ValueError, match="must be quoted") as caught:
        check_quoting(url)
    assert "cret" not in "".join(traceback.format_exception(None, caught.value, None))


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("amqps://h", {}),
        ("amqps://h?ssl_options=None", {}),
        ("amqps://h?ssl_options={}", {}),
        ("amqps://h/v?heartbeat=5&ssl_options={'keyfile':'k%26'}", {"keyfile": "k&"}),
    ],
)
def test_tls_options_good(url: str, options: dict[str, Any]) -> None:
    """The settings are a Python dict, empty where the URL has none."""
    assert tls_options(url) == options


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "literal"), ("open('x')", "literal"), ("[" * 500, "literal"), ("5", "dict")],
)
def test_tls_options_malformed(text: str, reason: str) -> None:
    """Settings that mean nothing are a ValueError."""
    with pytest.raises(ValueError, match=f"ssl_options are no (Python )?{reason}"):
        tls_options(f"amqps://h?ssl_options={text}")
