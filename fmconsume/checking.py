"""Tells whether a consumer would start: certificates, connection, exchanges, queues, bindings.

Nothing is changed or consumed at the broker. An exchange or a queue that exists is declared again
as it is configured: the broker only compares. The permissions to declare one that does not exist,
and to consume, are asked for with arguments of a wrong type: RabbitMQ looks at the permissions
before it refuses the arguments, or says that there is no such queue. A queue that nobody uses is
made, and deleted at once, where only that tells whether RabbitMQ permits its kind. One thread calls
the functions.
"""

from __future__ import annotations

import inspect
import math
import os
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple, Union

import pika
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ShortStringTooLong,
    UnsupportedAMQPFieldException,
)

from . import config, schema
from .broker.certificate import validity
from .broker.connection import Connection, connect
from .broker.errors import FORBIDDEN, NOT_FOUND, SessionLost, deprecation, reason
from .broker.topology import (
    NO_CONSUMER,
    Topology,
    declare_exchange,
    declare_queue,
    explain,
    is_built_in,
    is_stream,
    is_usable,
    stream_error,
    try_to_consume,
)
from .callbacks import prepare
from .console import say
from .engine.coroutines import CoroutineRunner
from .exceptions import ConnectionException, ExitCode, UnavailableException
from .kept import KeptMessages
from .message_classes import count_declared
from .redaction import hide_passwords, redact_value
from .state.notes import count_finished
from .text import describe, printable
from .wiring import addresses, failure_policy, list_exposures, list_losses, state_folder

__all__ = ["Row", "advise", "check", "examine"]

_Refusal = Union[ChannelClosedByBroker, ConnectionClosedByBroker]

#: Arguments whose values have the wrong type: RabbitMQ refuses them, and names them in its answer.
_NO_EXCHANGE = {"alternate-exchange": 0}
_NO_QUEUE = {"x-expires": "never"}

_NO_FILE = "not there: the defaults hold"

#: Seconds after which RabbitMQ takes back a message that is not acknowledged, by default.
_ACKNOWLEDGEMENT_TIMEOUT = 1800.0
#: Seconds of it for each callback with the defaults: ten prefetched messages and one worker.
_DEFAULT_SHARE = 180.0

#: Returns after which a quorum queue gives a message up by default, from RabbitMQ 4.0 on.
_DEFAULT_LIMIT = 20
_NO_LIMIT = -1


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        exit_code: Exit code with which the consumer would end because of this row, or OK.
        version: First two numbers of RabbitMQ's version, in the row of the broker that answers.
    """

    kind: str
    name: str
    status: str
    exit_code: ExitCode = ExitCode.OK
    version: tuple[int, ...] = ()


def check(callback: Any, topology: Topology, workers: int) -> int:
    """Print a table of the parts of a consumer, with the faults of each, and then advice.

    Args:
        callback: As it was imported; a class is constructed.
        workers: Callbacks that run at the same time.

    Returns:
        The exit code with which a consumer would end at its start, or 0.

    Raises:
        ValueError: The callback cannot be called.
        ConfigurationException: A URL, a certificate or a class of exceptions cannot be used.
        Exception: Whatever the constructor of a callback class raises.
    """
    found = [
        _look_at_configuration(config.conf.path),
        *_look_at_environment(),
        _look_at_callback(callback, workers),
        *_look_at_failures(),
        *_look_at_state(),
        *examine(topology, config.conf["tls"]),
    ]
    # A URL with a password may stand where a file or a queue should; names may hold anything.
    rows = [
        row._replace(
            name=printable(redact_value(row.name)), status=printable(hide_passwords(row.status))
        )
        for row in found
    ]
    width = max(len(row.name) for row in rows)
    for row in rows:
        mark = "!" if row.exit_code else " "
        say(f"{mark} {row.kind:13}  {row.name:{width}}  {row.status}")
    version = next((row.version for row in rows if row.version), ())
    delay = config.conf["failures"]["delay"]["max"]
    for text in (
        *_advise_on_schemas(),
        *list_exposures(),
        *list_losses(topology),
        *advise(topology, workers, config.conf["callback_timeout"], delay, version),
    ):
        say(f"  advice: {hide_passwords(text)}")
    return next((row.exit_code for row in rows if row.exit_code), ExitCode.OK)


def _look_at_configuration(path: str) -> Row:
    return Row("configuration", path, "valid" if os.path.exists(path) else _NO_FILE)


def _look_at_environment() -> Iterator[Row]:
    """Tell which keys come from the environment."""
    for variable in config.conf.given.variables:
        where = f" from {variable.file}" if variable.file else ""
        yield Row("environment", f"${variable.name}", f"sets {'.'.join(variable.path)}{where}")


def _look_at_callback(callback: Any, workers: int) -> Row:
    """Make the callback ready as a consumer would, and raise the same errors."""
    coroutines = CoroutineRunner()
    prepare(callback, coroutines, workers)
    coroutines.close(0)
    is_function = hasattr(callback, "__qualname__") and not inspect.isclass(callback)
    name = getattr(callback, "__qualname__", type(callback).__qualname__)
    return Row("callback", name, "imported" if is_function else "constructed")


def _look_at_failures() -> Iterator[Row]:
    """Make ready what [failures] names as a consumer would, and raise the same errors."""
    failure_policy()
    folder = config.conf["failures"]["keep_in"]
    if folder:
        try:
            KeptMessages(folder, config.conf["failures"]["keep"])
        except UnavailableException as exc:
            yield Row("folder", folder, str(exc), exc.exit_code)
        else:
            yield Row("folder", folder, "can be written")


def _look_at_state() -> Iterator[Row]:
    """Tell where the state is and how much it holds; a consumer does without one, too."""
    folder = state_folder()
    if folder is None:
        return
    try:
        count = count_finished(folder)
    except (OSError, ValueError) as exc:
        yield Row("state", str(folder), f"cannot be used: {describe(exc)}")
    else:
        there = f"knows {count:,} finished messages"
        yield Row("state", str(folder), there if folder.exists() else "would be made")


def examine(topology: Topology, tls: Mapping[str, str | None]) -> Iterator[Row]:
    """Compare certificates, brokers and topology with the configuration, a row for each.

    It ends early where no broker can be asked.
    """
    for key in ("ca_cert", "certfile"):
        path = tls[key]
        if path:
            yield _look_at_certificate(key, path)
    try:
        brokers = addresses()
    except ConnectionException:  # The client certificate's dates; its row tells of them.
        return
    refused = []
    for address in brokers:
        try:
            connection = connect(address)
        except (SessionLost, ConnectionException) as exc:
            text = str(exc).replace(f"{address.name}: ", "")
            refused.append(Row("broker", address.name, text, ExitCode.HANDSHAKE))
        else:
            # One broker that answers is enough: the others would not end a consumer.
            yield from (row._replace(exit_code=ExitCode.OK) for row in refused)
            server = connection.server_properties
            text = f"connected, {server.get('product', 'a broker')} {server.get('version', '')}"
            yield Row("broker", address.name, text.rstrip(), version=connection.version)
            yield from _Look(connection, topology).rows()
            return
    yield from refused


def _look_at_certificate(key: str, path: str) -> Row:
    row = Row(key, path, "")
    try:
        begin, end = validity(Path(path).read_text(encoding="latin-1"))
    except (OSError, ValueError) as exc:
        text = getattr(exc, "strerror", None) or str(exc)
        return row._replace(status=text, exit_code=ExitCode.HANDSHAKE)
    now = datetime.now(timezone.utc)
    if now < begin:
        text = f"not valid before {begin:%Y-%m-%d %H:%M} UTC"
    else:
        text = f"{'expired on' if now > end else 'valid until'} {end:%Y-%m-%d %H:%M} UTC"
    # A ca_cert may hold another authority that is still valid; only connecting tells.
    is_bad = key == "certfile" and not begin <= now <= end
    return row._replace(status=text, exit_code=ExitCode.HANDSHAKE if is_bad else ExitCode.OK)


_SERVER_NAMED = Row("queue", "", "would be declared, with a name of the broker's choice")
#: A name like those that the broker chooses, for which permissions are the same.
_LIKE_SERVER_NAMED = "amq.gen-fmconsume-check"


def _sendable(kind: str, name: str, look: Callable[..., Row], *args: Any, **kwargs: Any) -> Row:
    """Return the row of a look; if pika cannot write the request, a row that says why."""
    try:
        return look(*args, **kwargs)
    except AMQPConnectionError:
        raise
    except ShortStringTooLong:
        text = "a name in it is longer than 255 bytes"
    except UnsupportedAMQPFieldException as exc:
        text = f"AMQP has no value like {exc.args[-1]!r}"
    except (ValueError, TypeError, struct.error) as exc:
        text = f"AMQP has no such value: {exc}"
    return Row(kind, name, f"cannot be declared: {text}", ExitCode.DECLARATION)


class _Look:
    """A look at one broker; each request has a channel of its own, since a refusal closes it."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self._connection = connection
        self._topology = topology

    def rows(self) -> Iterator[Row]:
        """Look at everything in the topology, and close the connection."""
        try:
            for name, exchange in self._topology.exchanges.items():
                yield _sendable("exchange", name, self._look_at_exchange, name, exchange)
            for name, queue in self._topology.queues.items():
                look = partial(self._look_at_queue, name) if name else self._look_at_nameless_queue
                yield _sendable("queue", name, look, queue)
            for binding in self._topology.bindings:
                name = f"{binding['exchange']} -> {binding['queue']}"
                yield _sendable("binding", name, self._look_at_binding, name, **binding)
            self._connection.close()
        except (AMQPError, SessionLost) as exc:
            yield Row("broker", "", f"the connection ended: {reason(exc)}", ExitCode.HANDSHAKE)

    def _look_at_exchange(self, name: str, wanted: Mapping[str, Any]) -> Row:
        def declare(channel: Any, **options: Any) -> None:
            declare_exchange(channel, name, wanted, **options)

        if is_built_in(name):
            return Row("exchange", name, "is RabbitMQ's own")
        passive = self._topology.passive
        row = self._compare(Row("exchange", name, "exists"), declare, _NO_EXCHANGE, passive)
        is_refused = row.exit_code and self._connection.is_open
        if is_refused and is_usable(self._refusal(declare)):
            answer = self._refusal(partial(declare, passive=True))
            if answer is None or is_usable(answer):
                text = f"{row.status}; it is used as it is"
                return row._replace(status=text, exit_code=ExitCode.OK)
        return row

    def _look_at_queue(self, name: str, wanted: Mapping[str, Any]) -> Row:
        def declare(channel: Any, **options: Any) -> None:
            found = declare_queue(channel, name, wanted, **options)
            counts.append(f"{found.message_count} messages, {found.consumer_count} consumers")

        counts: list[str] = []
        passive = wanted.get("passive", self._topology.passive)
        row = self._compare(Row("queue", name, "exists"), declare, _NO_QUEUE, passive)
        if row.exit_code:
            return self._clarify(row, name, partial(declare, passive=passive))
        if counts:
            row = row._replace(status=f"exists, {counts[0]}")
        else:
            row = self._look_at_transience(row, wanted)
        return row if row.exit_code else self._look_at_reading(row, name)

    def _look_at_nameless_queue(self, wanted: Mapping[str, Any]) -> Row:
        def declare(channel: Any) -> None:
            declare_queue(channel, "", wanted, more_arguments=_NO_QUEUE)

        row = self._ask(_SERVER_NAMED, declare, *_NO_QUEUE)
        if not row.exit_code:
            row = self._look_at_transience(row, wanted)
        return row if row.exit_code else self._look_at_reading(row, _LIKE_SERVER_NAMED)

    def _clarify(self, row: Row, name: str, declare: Callable[[Any], None]) -> Row:
        """Return the row of a queue that cannot be declared, with a clearer reason if there is one.

        Args:
            declare: Declares it, as a consumer would.
        """
        if not self._connection.is_open:
            return row
        text = explain(self._refusal(declare), self._try_to_consume(name))
        return row._replace(status=f"cannot be declared: {text}") if text else row

    def _look_at_reading(self, row: Row, name: str) -> Row:
        """Tell whether one may consume from a queue, which need not exist.

        RabbitMQ looks at the permission first, and then whether there is such a queue.
        """
        refusal = self._try_to_consume(name)
        if is_stream(refusal):
            text = f"cannot be consumed: {stream_error(name).reason}"
            return row._replace(status=text, exit_code=ExitCode.DECLARATION)
        row = _judge(row, refusal, *NO_CONSUMER, "NOT_FOUND")
        return row._replace(exit_code=ExitCode.PERMISSION) if row.exit_code else row

    def _try_to_consume(self, name: str) -> _Refusal | None:
        return self._refusal(lambda channel: try_to_consume(channel, name))

    def _look_at_transience(self, row: Row, wanted: Mapping[str, Any]) -> Row:
        """Tell whether RabbitMQ still permits a queue that is neither durable nor exclusive.

        It says so only to whoever declares one.
        """
        is_transient = not (wanted["durable"] or wanted["exclusive"])
        if not is_transient or self._connection.version < (4, 0):
            return row

        def declare_for_a_moment(channel: Any) -> None:
            made = channel.queue_declare("", arguments={"x-expires": 1000}).method.queue
            channel.queue_delete(made)

        refusal = self._refusal(declare_for_a_moment)
        # Who may declare this queue, but not one that the broker names, is not told.
        return row if refusal is None or refusal.reply_code == FORBIDDEN else _refused(row, refusal)

    def _look_at_binding(
        self,
        name: str,
        queue: str,
        exchange: str,
        routing_keys: Sequence[str],
        arguments: Mapping[str, Any] | None = None,
    ) -> Row:
        # To unbind needs the same permissions, and removes nothing: nobody uses this argument.
        nobodys = {**(arguments or {}), f"fmconsume-check-{uuid.uuid4()}": ""}

        def unbind(channel: Any, key: str) -> None:
            channel.queue_unbind(queue or _LIKE_SERVER_NAMED, exchange, key, nobodys)

        for key in routing_keys:  # The session will send these: raise if pika cannot encode one.
            pika.spec.Queue.Bind(0, queue, exchange, key, arguments=arguments).encode()
        row = Row("binding", name, f"would be made: {', '.join(routing_keys)}")
        if arguments:
            row = row._replace(status=f"{row.status}, arguments {arguments}")
        missing = self._miss_exchange(exchange)
        if missing is not None:
            return _refused(row, missing)
        for key in routing_keys:
            # A queue or a configured exchange that is missing has a row of its own.
            answer = self._ask(row, partial(unbind, key=key), "NOT_FOUND")
            if answer.exit_code:
                return answer
        return row

    def _miss_exchange(self, exchange: str) -> _Refusal | None:
        """Return the broker's answer where an exchange is missing that nobody would declare."""
        if exchange in self._topology.exchanges and not is_built_in(exchange):
            return None
        answer = self._refusal(lambda channel: channel.exchange_declare(exchange, passive=True))
        return answer if answer is not None and answer.reply_code == NOT_FOUND else None

    def _compare(
        self, row: Row, declare: Callable[..., None], impossible: Mapping[str, Any], passive: bool
    ) -> Row:
        """Tell whether an exchange or a queue exists, and could be declared as it is configured.

        Args:
            row: Names it, and says that it exists.
            declare: Declares it on a channel, with the options of `declare_queue`.
            impossible: Arguments that RabbitMQ refuses after it has looked at the permissions.
            passive: The consumer would not declare it: it must exist.
        """
        refusal = self._refusal(partial(declare, passive=True))
        if refusal is not None and refusal.reply_code == FORBIDDEN:
            # From RabbitMQ 4.3 on, who has no permission is not told whether it exists.
            return _refused(row._replace(status="may exist"), refusal)
        if refusal is not None and refusal.reply_code != NOT_FOUND:
            return _refused(row, refusal)
        if passive and refusal is not None:
            text = "does not exist, and is not to be declared"
            return row._replace(status=text, exit_code=ExitCode.DECLARATION)
        if passive:
            return row
        if refusal is None:
            return self._ask(row, declare)
        row = row._replace(status="would be declared")
        return self._ask(row, partial(declare, more_arguments=impossible), *impossible)

    def _ask(self, row: Row, request: Callable[[Any], None], *harmless: str) -> Row:
        """Return the row, with the broker's refusal of the request if there is one.

        Args:
            harmless: Texts; a refusal that contains one of them does not count.
        """
        return _judge(row, self._refusal(request), *harmless)

    def _refusal(self, request: Callable[[Any], None]) -> _Refusal | None:
        channel = self._connection.open_channel()
        try:
            request(channel)
            channel.close()
        except (ChannelClosedByBroker, ConnectionClosedByBroker) as exc:
            return exc
        return None


def _judge(row: Row, refusal: _Refusal | None, *harmless: str) -> Row:
    """Return the row, with the refusal if there is one; see `_Look._ask`."""
    if refusal is None or any(text in refusal.reply_text for text in harmless):
        return row
    return _refused(row, refusal)


def _refused(row: Row, refusal: _Refusal) -> Row:
    text = deprecation(refusal.reply_text) or reason(refusal)
    return row._replace(status=f"{row.status}, but {text}", exit_code=ExitCode.DECLARATION)


def advise(
    topology: Topology,
    workers: int,
    callback_timeout: float | None = None,
    nack_maximum: float = 0,
    version: tuple[int, ...] = (),
) -> Iterator[str]:
    """Say which settings are valid but probably not intended.

    Args:
        workers: Callbacks that run at the same time.
        callback_timeout: Seconds that a callback may take, if that is configured.
        nack_maximum: Seconds for which a Nack is held back at most.
        version: First two numbers of RabbitMQ's version; empty if it is not known.
    """
    for name, queue in topology.queues.items():
        arguments = queue["arguments"]
        is_quorum = arguments.get("x-queue-type") == "quorum"
        if is_quorum and "x-dead-letter-exchange" not in arguments:
            lost = _tell_limit(arguments.get("x-delivery-limit"), version)
            yield (
                f"queue {name!r} is a quorum queue without x-dead-letter-exchange: unless a policy "
                f"says otherwise, what is dropped is gone{lost}"
            )
        is_declared = not queue.get("passive", topology.passive)
        is_transient = is_declared and not (queue["durable"] or queue["exclusive"])
        if is_transient and version >= (4, 3):
            yield (
                f"queue {name!r} is neither durable nor exclusive, which RabbitMQ refuses from 4.3 "
                "on unless its operators permit transient_nonexcl_queues: set durable = true, or "
                "exclusive = true"
            )
        if queue["exclusive"] and workers > 1:
            yield (
                f"queue {name!r} is exclusive: all {workers} workers are in this process, a "
                "second one cannot help, and what is in the queue is gone when it ends"
            )
    yield from _advise_on_prefetch(topology.prefetch_count, workers, callback_timeout)
    if nack_maximum > _ACKNOWLEDGEMENT_TIMEOUT:
        yield (
            f"failures.delay.max = {nack_maximum:g}: a Nack is held unacknowledged, longer than "
            "the broker's acknowledgement timeout, by default 30 minutes (1800)"
        )


def _advise_on_schemas() -> Iterator[str]:
    count = count_declared()
    if count and not schema.is_installed():
        yield (
            f"nothing is installed that validates: messages of the {count} installed classes come "
            "as they are; pip install 'fmconsume[schema]'"
        )


def _tell_limit(limit: Any, version: tuple[int, ...]) -> str:
    """Say after how many returns a quorum queue loses a message, and which returns count.

    Source: RabbitMQ's documentation of quorum queues, "Poison Message Handling".
    """
    is_default = limit is None
    if is_default:
        limit = _DEFAULT_LIMIT if version >= (4, 0) else _NO_LIMIT
    if limit == _NO_LIMIT:
        return ""
    counted = (
        "failed callbacks and lost consumers count, a Nack does not"
        if version >= (4, 3)
        else "every return counts, a Nack and what was only prefetched on a lost connection too"
    )
    whose = "by default after" if is_default else "after more than"
    return (
        f", and so is a message that came back too often, {whose} {limit} returns ({counted}); "
        "give the queue a dead-letter exchange"
        + (", or no limit with x-delivery-limit = -1" if version >= (4, 0) else "")
    )


def _advise_on_prefetch(
    prefetch_count: int, workers: int, callback_timeout: float | None
) -> Iterator[str]:
    if prefetch_count == 0:
        yield "prefetch_count = 0: the broker sends all it has, however long that waits here"
        return
    if workers > prefetch_count:
        yield f"prefetch_count = {prefetch_count}: no more of the {workers} workers can be busy"
    # The last prefetched message is acknowledged after all the callbacks of its worker.
    seconds = _ACKNOWLEDGEMENT_TIMEOUT / math.ceil(prefetch_count / workers)
    if seconds < (_DEFAULT_SHARE if callback_timeout is None else callback_timeout):
        yield (
            f"prefetch_count = {prefetch_count} and workers = {workers} leave each callback "
            f"{seconds:.0f} s of the broker's acknowledgement timeout, by default 30 minutes"
        )
