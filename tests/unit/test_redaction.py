"""Tests of what hides passwords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.broker.errors import SessionLost
from fmconsume.exceptions import (
    BadDeclaration,
    ConfigurationException,
    ConnectionException,
    PermissionException,
    PublishReturned,
)
from fmconsume.redaction import hide_passwords, redact, redact_value


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://", "amqp://"),
        ("amqp://?retry_delay=5", "amqp://?retry_delay=5"),
        ("amqp://h:5672/v?heartbeat=5", "amqp://h:5672/v?heartbeat=5"),
        ("amqp://[::1]:5672/v", "amqp://[::1]:5672/v"),
        ("amqps://fedora:@h/v", "amqps://fedora:@h/v"),
        ("amqps://fedora@h/v", "amqps://fedora@h/v"),
        ("amqp://u:secret@h:1/v", "amqp://u:***@h:1/v"),
        ("amqp://u:secret@[::1]/v", "amqp://u:***@[::1]/v"),
        ("amqp://:secret@h", "amqp://:***@h"),
        ("amqp://u:sec:r@e/t?#@h", "amqp://u:***@h"),
        ("amqp://u:secret", "amqp://u:***"),
        ("amqp://u:1secret/", "amqp://u:***"),
        ("u:secret@h", "u:***@h"),
        ("amqp:/u:secret@h", "amqp:***@h"),
        ("amqp:u:secret", "amqp:***"),
        ("amqp://u:se\ncret@h", "amqp://u:***@h"),
        ("u:secret://x@h", "u:***@h"),
        (
            "amqps://h/?ssl_options={'password': 'secret'}&heartbeat=1",
            "amqps://h/?ssl_options=***&heartbeat=1",
        ),
        ("", ""),
    ],
)
def test_redact(url: str, shown: str) -> None:
    """Passwords are masked in any URL, and nothing else where it is well formed."""
    assert redact(url) == shown


@given(
    scheme=st.sampled_from(["amqp://", "AMQPS://", "http://", "", "amqp:/", "amqp:"]),
    before=st.text(),
    after=st.text(),
    end=st.sampled_from(["@", "@h", "@h:5672/v?heartbeat=1"]),
)
def test_redact_hides_any_password(scheme: str, before: str, after: str, end: str) -> None:
    """No character in a password brings it to light."""
    assert "SECRET" not in redact(f"{scheme}user:{before}SECRET{after}{end}")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("amqp://u:se cret@h", "amqp://u:***@h"),
        ("u:secret@h", "u:***@h"),
        ("/etc/pki/ca.pem", "/etc/pki/ca.pem"),
        ("package.module:object", "package.module:object"),
    ],
)
def test_redact_value(value: str, shown: str) -> None:
    """A configured value that may be a URL is shown without its password, others as they are."""
    assert redact_value(value) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot use amqp://u:secret@h: no file", "cannot use amqp://u:***@h: no file"),
        ("no exchange 'u:sec:r@t@h' in vhost '/'", "no exchange 'u:***@h' in vhost '/'"),
        ("found 'amqp://u:secret@h' and u:other@h", "found 'amqp://u:***@h' and u:***@h"),
        ("amqps://ann@h:5671 (virtual host '/')", "amqps://ann@h:5671 (virtual host '/')"),
        ("amqps://@h:5671: refused", "amqps://@h:5671: refused"),
        ("at 12:30 ann@example.org came", "at 12:30 ann@example.org came"),
        ("", ""),
    ],
)
def test_hide_passwords(text: str, shown: str) -> None:
    """In a text only what looks like user:password@ is masked, and only the password."""
    assert hide_passwords(text) == shown
    assert hide_passwords(shown) == shown


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationException("failed_messages 'amqp://u:secret@h': no such folder"),
        ConnectionException(reason="tls.certfile: u:secret@h expired"),
        ConnectionException("u:secret@h"),
        PermissionException("queue", "u:secret@h", "ACCESS_REFUSED for 'u:secret@h'"),
        BadDeclaration("exchange", "amqp://u:se cret@h", "PRECONDITION_FAILED"),
        PublishReturned("404 NOT_FOUND - no exchange 'u:secret@h' in vhost '/'"),
        SessionLost("queue 'u:secret@h': locked"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_hide_passwords(error: Exception) -> None:
    """What an error shows holds no password, whatever name it was put into."""
    shown = f"{error} {getattr(error, 'message', '')} {getattr(error, 'reason', '')}"
    assert "cret" not in str(error)
    assert isinstance(error, (PermissionException, PublishReturned)) or "cret" not in shown
    assert "u:***@h" in str(error)
