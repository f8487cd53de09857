"""Hides passwords before people read them: in a URL, and in any text that may contain one.

Pure: any thread may call.
"""

from __future__ import annotations

import re

__all__ = ["hide_passwords", "redact", "redact_value"]

#: A user, a colon and a password up to the last "@" of the word. The colon of "amqp://" is not one.
_LOGIN = re.compile(r"([^\s:/@'\"]*):(?!//)\S*@")
#: A password as a parameter of a URL.
_PARAMETER = re.compile(r"(?i)([?&]password=)[^&\s'\"]+")


def redact(url: str) -> str:
    """Replace the passwords in an AMQP URL by ***, however malformed it is.

    In doubt too much is hidden: an unquoted password may hold any character.
    """
    scheme, rest = re.findall(r"(?is)^(amqps?://)?(.*)", url)[0]
    # ssl_options may hold the password of a private key.
    rest = _PARAMETER.sub(r"\1***", re.sub(r"(ssl_options=)[^&]+", r"\1***", rest))
    user_info, at, host = rest.rpartition("@") if "@" in rest else (rest, "", "")
    user, _, password = user_info.partition(":")
    is_port = not at and (user.startswith("[") or re.match(r"\d*([/?#]|$)", password))
    return f"{scheme}{rest}" if is_port or not password else f"{scheme}{user}:***{at}{host}"


def redact_value(value: str) -> str:
    """Hide the password in a configured value, which may be a URL under the wrong key."""
    return redact(value) if "@" in value or "//" in value else value


def hide_passwords(text: str) -> str:
    """Replace what looks like the password in user:password@host by ***, anywhere in a text.

    A URL can stand where a path or a name should, and an error shows what it found there.
    """
    if "@" in text:
        text = _LOGIN.sub(r"\1:***@", text)
    return _PARAMETER.sub(r"\1***", text) if "?" in text else text
