"""Which AMQP URLs fmconsume accepts, and the TLS settings inside them.

Pure: any thread may call.
"""

from __future__ import annotations

import ast
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["check_quoting", "is_amqp_url", "tls_options"]


def is_amqp_url(value: object) -> bool:
    """Tell whether a value is an AMQP URL whose every part can be understood.

    Files that it names are not read: connecting reports the problems with those.
    """
    import pika  # Slow to import, and the configuration is often not loaded at all.

    if not isinstance(value, str) or not value.lower().startswith(("amqp://", "amqps://")):
        return False
    try:
        check_quoting(value)
        tls_options(value)
        # Without ssl_options: pika would open the files that they name.
        pika.URLParameters(re.sub(r"(?<=[?&])ssl_options=[^&]*", "", value))
    except Exception:  # pika lets through the errors of int() and of many others.
        return False
    return True


def check_quoting(url: str) -> None:
    """Refuse an unquoted password: a part of it would be read as port or virtual host, and shown.

    Raises:
        ValueError: The password is not quoted, or the host or the port is malformed.
    """
    if _is_split_wrongly(url):
        # Not raised where urlsplit fails: its error shows that part of the password.
        raise ValueError(
            "its host or port is malformed, or its password holds a character that must be "
            'quoted, as %2F for "/"'
        )


def _is_split_wrongly(url: str) -> bool:
    """Tell whether the port is no number, the host is a list, or a password goes on after it.

    An "@" belongs before the host. Behind it, only the value of a parameter may hold one, as the
    path of a certificate.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return True
    behind = [parts.path, parts.query.partition("=")[0], parts.fragment]
    return "@" in "".join(behind) or "," in (parts.hostname or "")


def tls_options(url: str) -> dict[str, Any]:
    """Return the TLS settings in an AMQP URL, which count instead of those under [tls].

    Raises:
        ValueError: They are malformed.

    Source: pika.URLParameters, ssl_options.
    """
    texts = parse_qs(urlsplit(url).query).get("ssl_options", ["None"])
    try:
        options = ast.literal_eval(texts[0]) or {}
    except Exception as exc:  # Among others SyntaxError and RecursionError.
        raise ValueError("its ssl_options are no Python literal") from exc
    if not isinstance(options, dict):
        raise ValueError("its ssl_options are no dict")
    return options
