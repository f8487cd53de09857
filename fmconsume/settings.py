"""What the configuration means to the engine: addresses and topology; any thread may call."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from .broker.addresses import Address, parse_address
from .broker.topology import Topology
from .config import LazyConfig, conf
from .config_checks import DEFAULTS, check_bindings, check_queues
from .exceptions import ConfigurationException
from .log import get_logger
from .redaction import redact

__all__ = ["addresses", "select", "topology"]

_log = get_logger(__name__)


def addresses() -> list[Address]:
    """Give the configured brokers, in order of preference.

    A password and paths under [tls] that have changed in the configuration file count for the
    next connection, unless a program has set amqp_url or tls itself.

    Raises:
        ConfigurationException: A URL or a certificate cannot be used.
    """
    source = _Source()
    return [_address(url, source) for url in source.urls]


def _address(url: str, source: _Source) -> Address:
    try:
        look_up = partial(source.look_up, url)
        return parse_address(*look_up(), conf["client_properties"], look_up)
    except (ValueError, OSError) as exc:
        raise ConfigurationException(f"amqp_url {redact(url)!r}, [tls]: {exc}") from exc


class _Source:
    """Where URLs and [tls] come from: the configuration, and later its file if that changes."""

    def __init__(self) -> None:
        self._take(conf)
        is_from_file = all(conf[key] == conf.as_loaded.get(key) for key in ("amqp_url", "tls"))
        #: As the file was when it was last read; None where a program decides.
        self._config = conf if is_from_file else None

    def _take(self, config: LazyConfig) -> None:
        urls = config["amqp_url"]
        self.urls = [urls] if isinstance(urls, str) else list(urls)
        self.tls: Mapping[str, str | None] = config["tls"]

    def look_up(self, url: str) -> tuple[str, Mapping[str, str | None]]:
        """Give the URL for the same user at the same broker, and [tls], as they are now.

        Thread: any.
        """
        if self._config is None:
            return url, self.tls
        if self._config.is_outdated:
            self._read(self._config.absolute_path)
        return self._find(url) or url, self.tls

    def _find(self, url: str) -> str:
        """Give what the URL is now, "" if it is there no more."""
        same = [each for each in self.urls if _place(each) == _place(url)]
        return url if url in self.urls else "".join(same[:1])

    def _read(self, path: str) -> None:
        before = self.urls, self.tls
        try:
            self._config = LazyConfig().load_config(path)
            self._take(self._config)
            if not all(map(self._find, before[0])):
                # Half written, perhaps; what belongs to another broker is of no use here.
                raise ConfigurationException(f"{path} has another amqp_url now")
        except ConfigurationException as exc:
            self.urls, self.tls = before
            # What is known may still do, and the next connection reads the file again.
            _log.warning("going on with the amqp_url and [tls] of before: %s", exc)


def _place(url: str) -> tuple[object, ...]:
    """Give all that tells one broker from another, which is not the password."""
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.username, parts.hostname, parts.port, parts.path


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
