"""What the configuration means to the engine: addresses and topology; any thread may call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import check_bindings, check_queues, conf, redact
from .engine.address import Address, parse_address
from .engine.session import Topology
from .exceptions import ConfigurationException

__all__ = ["addresses", "topology"]


def addresses() -> list[Address]:
    """Give the configured brokers, in order of preference.

    Raises:
        ConfigurationException: A URL or a certificate cannot be used.
    """
    urls = conf["amqp_url"]
    return [_address(url, conf["tls"]) for url in ([urls] if isinstance(urls, str) else urls)]


def _address(url: str, tls: Mapping[str, str | None]) -> Address:
    try:
        return parse_address(url, tls, conf["client_properties"])
    except (ValueError, OSError) as exc:
        raise ConfigurationException(f"amqp_url {redact(url)!r}, [tls]: {exc}") from exc


def topology(bindings: Any = None, queues: Any = None) -> Topology:
    """Take the arguments where given, the configuration where not.

    Raises:
        ValueError: An argument cannot be used; the message names the key.
    """
    try:
        queues = conf["queues"] if queues is None else check_queues(queues)
        if bindings is None:
            bindings = [binding for binding in conf["bindings"] if binding["queue"] in queues]
        else:
            bindings = check_bindings(bindings, queues)
    except ConfigurationException as exc:
        raise ValueError(exc.message) from exc
    return Topology(
        conf["exchanges"],
        queues,
        bindings,
        conf["passive_declares"],
        conf["qos"]["prefetch_count"],
        conf["qos"]["prefetch_size"],
    )
