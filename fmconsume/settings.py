"""What the configuration means to the engine: addresses and topology; any thread may call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import DEFAULTS, check_bindings, check_queues, conf
from .engine.address import Address, parse_address
from .engine.session import Topology
from .exceptions import ConfigurationException
from .redaction import redact

__all__ = ["addresses", "select", "topology"]


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
        # Also the configuration's own, which a program may have changed.
        queues = check_queues(conf["queues"] if queues is None else queues)
        if bindings is None:
            bindings = [b for b in conf["bindings"] if b.get("queue", "") in queues]
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


def select(
    queue: str | None, exchange: str | None, routing_keys: list[str] | None
) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """Narrow the configured bindings and queues down.

    Args:
        queue: The only queue; one that is not configured is as the nameless one is.
        exchange: What every queue is bound to.
        routing_keys: With what every queue is bound.

    Returns:
        Bindings and queues.
    """
    queues: Mapping[str, Any] = conf["queues"]
    bindings = [dict(binding) for binding in conf["bindings"]]
    if queue in queues:
        bindings = [binding for binding in bindings if binding["queue"] == queue]
    if queue:
        queues = {queue: queues.get(queue) or queues.get("", DEFAULTS["queues"][""])}
    for binding in bindings:
        binding["queue"] = queue or binding["queue"]
    if exchange or routing_keys:
        bound = [binding["queue"] for binding in bindings]
        unbound = [name for name in queues if name not in bound]
        bindings += [{**DEFAULTS["bindings"][0], "queue": name} for name in unbound]
    for binding in bindings:
        binding["exchange"] = exchange or binding["exchange"]
        binding["routing_keys"] = routing_keys or binding["routing_keys"]
    return bindings, queues
