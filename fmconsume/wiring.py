"""Turns the configuration into the brokers, the topology and the engine's options of a consumer.

Any thread may call.
"""

from __future__ import annotations

import os
import pkgutil
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

from pika.spec import Connection

from . import config
from .broker.addresses import Address, parse_address
from .broker.topology import Topology
from .config import LazyConfig
from .config_checks import DEFAULTS, check_amqp_url, check_bindings, check_queues
from .delivery import DROP, FAIL, NACK
from .engine.failures import FailurePolicy
from .engine.supervisor import Options
from .exceptions import ConfigurationException
from .log import get_logger
from .redaction import redact, redact_value
from .state.notes import Notes, explain
from .text import describe

__all__ = [
    "addresses",
    "failure_policy",
    "list_exposures",
    "list_losses",
    "open_notes",
    "options",
    "select",
    "state_folder",
    "topology",
]

_log = get_logger(__name__)

_Tls = Mapping[str, Optional[str]]


# -- brokers ---------------------------------------------------------------------------


def addresses(amqp_url: str | Sequence[str] | None = None) -> list[Address]:
    """Return the brokers, in order of preference.

    A password or a path under [tls] that changes in the configuration file counts for the next
    connection, unless a program has set amqp_url or tls itself.

    Args:
        amqp_url: Of the brokers; None takes the configuration's.

    Raises:
        ValueError: The argument is no URL.
        ConfigurationException: A URL or a certificate cannot be used.
        ConnectionException: The client certificate has expired, or is not valid yet.
    """
    _check_client_properties()
    try:
        source = _Source(None if amqp_url is None else check_amqp_url(amqp_url))
    except ConfigurationException as exc:
        raise ValueError(exc.message) from exc
    return [_address(url, source) for url in source.urls]


def _check_client_properties() -> None:
    """Refuse what pika cannot encode: every connection would fail."""
    for key, value in config.conf["client_properties"].items():
        try:
            Connection.StartOk(client_properties={key: value}, response="").encode()
        except Exception as exc:  # pika raises several.
            found = redact_value(str(value))
            raise ConfigurationException(
                f"client_properties.{key}: found {found}, which AMQP has no type for: "
                f"{type(exc).__name__}"
            ) from exc


def _address(url: str, source: _Source) -> Address:
    try:
        look_up = partial(source.look_up, url)
        address = parse_address(*look_up(), config.conf["client_properties"], look_up)
        return address._replace(is_current=lambda: source.is_current)
    except (ValueError, OSError) as exc:
        raise ConfigurationException(f"amqp_url {redact(url)!r}, [tls]: {exc}") from exc


class _Source:
    """Gives amqp_url and [tls] as configured, and as its file has them once that has changed."""

    def __init__(self, urls: list[str] | None) -> None:
        #: As configured, or as in the file when it was last read. Threads: any.
        self.urls, self.tls = _urls_and_tls(config.conf)
        self.urls = urls or self.urls
        # A program may have put any mapping in the place of the configuration.
        conf: Any = config.conf
        loaded = getattr(conf, "as_loaded", {})
        is_from_file = not urls and all(conf[key] == loaded.get(key) for key in ("amqp_url", "tls"))
        #: The file as it was last read; None if a program has set the values. Threads: any.
        self._config: LazyConfig | None = conf if is_from_file else None
        #: What was read last could be used. Threads: any.
        self.is_current = True

    def look_up(self, url: str) -> tuple[str, _Tls]:
        """Return the present URL for the same user at the same broker, and the present [tls].

        Thread: any.
        """
        if self._config is None:
            return url, self.tls
        if self._config.is_outdated:
            self._read(self._config)
        return _find(url, self.urls) or url, self.tls

    def _read(self, before: LazyConfig) -> None:
        """Load it again; keep the values of before if they do not have all the brokers now."""
        self.is_current = False
        try:
            self._config = before.reloaded()
            self.is_current = True
            urls, tls = _urls_and_tls(self._config)
            if not all(_find(url, urls) for url in self.urls):
                # Perhaps half written. Certificates for other brokers would be of no use here.
                source = self._config.source("amqp_url")
                raise ConfigurationException(f"{source} has another amqp_url now")
        except ConfigurationException as exc:
            # The values of before may still be good.
            _log.warning("going on with the amqp_url and [tls] of before: %s", exc)
        else:
            self.urls, self.tls = urls, tls


def _urls_and_tls(config: LazyConfig) -> tuple[list[str], _Tls]:
    urls = config["amqp_url"]
    return [urls] if isinstance(urls, str) else list(urls), config["tls"]


def _find(url: str, urls: list[str]) -> str | None:
    """Return the URL among these for the same user at the same broker, the same URL first."""
    if url in urls:
        return url
    return next((each for each in urls if _without_password(each) == _without_password(url)), None)


def _without_password(url: str) -> tuple[object, ...]:
    """Return the parts of a URL that tell a user at a broker from others."""
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.username, parts.hostname, parts.port, parts.path


# -- topology --------------------------------------------------------------------------


def topology(bindings: Any = None, queues: Any = None) -> Topology:
    """Return the topology with these bindings and queues, or with the configured ones.

    Args:
        bindings: As for `Consumer`; None takes the configured bindings of the queues.
        queues: As for `Consumer`; None takes the configured queues.

    Raises:
        ValueError: An argument cannot be used; the message names the key.
    """
    try:
        # Configured ones are checked too: a program may have changed them.
        if bindings is None:
            bindings = config.conf["bindings"] if queues is None else _bindings_of(queues)
        queues = check_queues(config.conf["queues"] if queues is None else queues)
        bindings = check_bindings(bindings, queues)
    except ConfigurationException as exc:
        raise ValueError(exc.message) from exc
    return Topology(
        exchanges=config.conf["exchanges"],
        queues=queues,
        bindings=bindings,
        passive=config.conf["passive_declares"],
        prefetch_count=config.conf["qos"]["prefetch_count"],
        prefetch_size=config.conf["qos"]["prefetch_size"],
    )


def _bindings_of(queues: Collection[str]) -> list[Any]:
    return [binding for binding in config.conf["bindings"] if binding.get("queue", "") in queues]


# -- the selection by the command's arguments ------------------------------------------


def select(
    queue: str | None, exchange: str | None, routing_keys: list[str] | None
) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """Change the configured bindings and queues as the command's arguments say.

    Args:
        queue: The only queue; None leaves the configured ones. A queue that is not configured
            gets the settings of the nameless queue, and every configured binding.
        exchange: The exchange that every queue is bound to; None leaves those of the bindings.
        routing_keys: The routing keys of every binding; None leaves their own.

    Returns:
        Bindings and queues, as `topology` accepts them; the configuration stays as it is.
    """
    queues = _select_queues(queue)
    bindings = _select_bindings(queue)
    if exchange or routing_keys:
        bindings += _bind_rest(queues, bindings)
    return [_replace(binding, exchange, routing_keys) for binding in bindings], queues


def _select_queues(name: str | None) -> Mapping[str, Any]:
    """Return the settings of the queue of this name only; None returns those of all queues."""
    queues: Mapping[str, Any] = config.conf["queues"]
    if not name:
        return queues
    return {name: queues.get(name) or queues.get("", DEFAULTS["queues"][""])}


def _select_bindings(name: str | None) -> list[dict[str, Any]]:
    """Return copies of the bindings of this queue; all are its own if it is not configured."""
    bindings = config.conf["bindings"]
    if name in config.conf["queues"]:
        bindings = [binding for binding in bindings if binding["queue"] == name]
    return [{**binding, "queue": name or binding["queue"]} for binding in bindings]


def _bind_rest(queues: Mapping[str, Any], bindings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the default binding for each queue that has no binding yet."""
    bound = {binding["queue"] for binding in bindings}
    return [{**DEFAULTS["bindings"][0], "queue": name} for name in queues if name not in bound]


def _replace(
    binding: dict[str, Any], exchange: str | None, routing_keys: list[str] | None
) -> dict[str, Any]:
    """Return the binding with this exchange and these routing keys; None leaves its own."""
    return {
        **binding,
        "exchange": exchange or binding["exchange"],
        "routing_keys": routing_keys or binding["routing_keys"],
    }


# -- options ---------------------------------------------------------------------------


def options(workers: int | None, limit: int | None, drain: bool) -> Options:
    """Return the engine's options.

    Args:
        workers: Callbacks that run at the same time; None takes the configuration's.
        limit: Deliveries to work on before stopping; None is no limit.
        drain: Stop once the queues hold no messages but those that the callback sent back.

    Raises:
        ValueError: A number is below 1, or is no integer; the message names it.
    """
    _check_number("workers", workers)
    _check_number("limit", limit)
    return Options(
        workers=config.conf["workers"] if workers is None else workers,
        nack_initial=config.conf["failures"]["delay"]["initial"],
        nack_maximum=config.conf["failures"]["delay"]["max"],
        remember=config.conf["remember"],
        limit=limit,
        drain=drain,
        callback_timeout=config.conf["callback_timeout"],
        is_guarded=not (config.conf["failures"]["keep_in"] or config.is_fedora_messaging),
    )


def _check_number(name: str, value: int | None) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{name}: found {value!r}, expected a number of at least 1")


# -- state -----------------------------------------------------------------------------


def state_folder() -> Path | None:
    """Return the folder for what outlives the process; None where there is none."""
    folder = config.conf["state"]
    if not folder:
        # Source: systemd.exec(5). Several folders are separated by colons.
        given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        folder = given and os.path.join(given, "state")
    return Path(folder).absolute() if folder and config.conf["remember"] else None


def open_notes() -> Notes | None:
    """Open what outlives the process; where that is not possible, log it and return None."""
    folder = state_folder()
    if folder is None:
        return None
    try:
        return Notes(folder, config.conf["remember"])
    except (OSError, ValueError) as exc:
        _log.warning("%s", explain(folder, exc))
        return None


# -- failures --------------------------------------------------------------------------

_ON_EXCEPTION = {"halt": FAIL, "nack": NACK, "drop": DROP}


def failure_policy() -> FailurePolicy:
    """Return what an exception of the callback leads to.

    Raises:
        ConfigurationException: A class of exceptions cannot be imported.
    """
    failures = config.conf["failures"]
    return FailurePolicy(
        on_exception=_ON_EXCEPTION[failures["on_exception"]],
        nack_on=tuple(_import_exception("nack_on", name) for name in failures["nack_on"]),
        drop_on=tuple(_import_exception("drop_on", name) for name in failures["drop_on"]),
        max_attempts=failures["max_attempts"],
    )


def list_losses(topology: Topology) -> Iterator[str]:
    """Give a line where a message that is set aside or dropped would be gone."""
    failures = config.conf["failures"]
    is_rejecting = failures["max_attempts"] or failures["drop_on"]
    if failures["keep_in"] or not (is_rejecting or failures["on_exception"] == "drop"):
        return
    unsafe = sorted(topology.queues.keys() - topology.dead_lettering_queues)
    if unsafe:
        yield (
            f"failures.keep_in is not set, and queue {', '.join(map(repr, unsafe))} has no "
            "x-dead-letter-exchange: unless a policy says otherwise, what is set aside or dropped "
            "is gone"
        )


def list_exposures() -> Iterator[str]:
    """Give a line where every user of this machine may read a password in the configuration."""
    # A program may have put any mapping in the place of the configuration.
    conf: Any = config.conf
    urls = getattr(conf, "in_file", {}).get("amqp_url", [])
    if any(map(_has_password, urls if isinstance(urls, list) else [urls])):
        path = os.path.realpath(conf.absolute_path)
        if _is_open_to_all(path):
            yield (
                f"{path} holds a password, in amqp_url, and every user of this machine may read "
                "it: give it to the consumer's user or group, and chmod 640"
            )


def _has_password(url: object) -> bool:
    """Tell whether a URL has a password, other than the one that RabbitMQ accepts locally only."""
    try:
        return urlsplit(str(url)).password not in (None, "", "guest")
    except ValueError:
        return False


def _is_open_to_all(path: str) -> bool:
    """Tell whether a file may be read, and its folders entered, by everybody."""
    try:
        folders = [os.stat(folder).st_mode & stat.S_IXOTH for folder in Path(path).parents]
        found = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(found) and bool(found & stat.S_IROTH) and all(folders)


def _import_exception(key: str, name: str) -> type[BaseException]:
    """Import a class of exceptions by its dotted name; one of Python's own has no dot."""
    try:
        found = pkgutil.resolve_name(name if "." in name else f"builtins.{name}")
    except Exception as exc:  # The module may raise anything.
        raise ConfigurationException(
            f"failures.{key}: cannot import {name!r}: {describe(exc)}"
        ) from exc
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise ConfigurationException(f"failures.{key}: {name!r} is no class of exceptions")
    return found
