"""The command `fmconsume`: options and configuration in, a consumer, an exit code out.

The main thread runs it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Dict, List, Optional, Tuple

from . import callbacks
from .api import Consumer
from .config import DEFAULTS, conf
from .exceptions import ConfigurationException, ExitCode, HaltConsumer
from .version import __version__

__all__ = ["main", "parser"]

_LEVELS = ("debug", "info", "warning", "error", "critical")


def parser() -> argparse.ArgumentParser:
    """Build the argument parser; the man page is made from it too."""
    result = argparse.ArgumentParser(
        prog="fmconsume",
        description="Consume messages from RabbitMQ queues with a Python callback.",
    )
    source = result.add_mutually_exclusive_group()
    source.add_argument(
        "--callback",
        metavar="MODULE:OBJECT",
        help="function or class to call with each message, imported by this name; "
        "the current directory is searched too",
    )
    source.add_argument(
        "--callback-file",
        metavar="FILE.py:OBJECT",
        help="the same, taken from a Python file",
    )
    result.add_argument(
        "--config",
        "--conf",
        metavar="FILE",
        help="TOML configuration file; without it $FMCONSUME_CONF, $FEDORA_MESSAGING_CONF "
        "or /etc/fedora-messaging/config.toml",
    )
    _add_overrides(result)
    result.add_argument("--version", action="version", version=f"fmconsume {__version__}")
    return result


def _add_overrides(result: argparse.ArgumentParser) -> None:
    """Add the options that stand in for a key of the configuration."""
    overrides = result.add_argument_group("in place of the configuration")
    overrides.add_argument("--queue-name", metavar="QUEUE", help="consume from this queue only")
    overrides.add_argument(
        "--exchange", metavar="EXCHANGE", help="bind the queues to this exchange"
    )
    overrides.add_argument(
        "--routing-key",
        metavar="KEY",
        action="append",
        help="bind the queues with this routing key; may be given several times",
    )
    overrides.add_argument(
        "--app-name", metavar="NAME", help="name shown to the broker's administrators"
    )
    overrides.add_argument(
        "--workers", metavar="N", type=int, help="callbacks that run at the same time"
    )
    overrides.add_argument(
        "--limit", metavar="N", type=int, help="stop after this many messages"
    )
    overrides.add_argument(
        "--log-level", metavar="LEVEL", choices=_LEVELS, help=f"one of {', '.join(_LEVELS)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes sys.argv.

    Returns:
        The exit status.
    """
    args = parser().parse_args(argv)
    try:
        consumer = _prepare(args)
    except (ConfigurationException, ValueError) as exc:
        _complain(str(exc))
        return ExitCode.USAGE
    return _run(consumer)


def _prepare(args: argparse.Namespace) -> Consumer:
    conf.load_config(args.config)
    _set_up_logging(args.log_level)
    if args.app_name:
        conf["client_properties"]["app"] = args.app_name
    queues, bindings = _select(args)
    return Consumer(
        _load_callback(args), bindings, queues, workers=args.workers, limit=args.limit
    )


def _set_up_logging(level: str | None) -> None:
    conf.setup_logging()
    if level:
        for name in (None, "fmconsume"):
            logging.getLogger(name).setLevel(level.upper())


def _load_callback(args: argparse.Namespace) -> Any:
    # Python puts the directory of the installed script here, not the one the user stands in.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if args.callback_file:
        return callbacks.load_from_file(args.callback_file)
    path = args.callback or conf["callback"]
    if not path:
        raise ConfigurationException(
            "no callback: give --callback module:object, or set callback in the configuration"
        )
    return callbacks.load_from_module(path)


def _select(args: argparse.Namespace) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    """Apply --queue-name, --exchange and --routing-key to the configured topology."""
    queues: Mapping[str, Any] = conf["queues"]
    bindings = [dict(binding) for binding in conf["bindings"]]
    if args.queue_name in queues:
        bindings = [binding for binding in bindings if binding["queue"] == args.queue_name]
    if args.queue_name:
        fallback = queues.get("", DEFAULTS["queues"][""])
        queues = {args.queue_name: queues.get(args.queue_name, fallback)}
    for binding in bindings:
        binding["queue"] = args.queue_name or binding["queue"]
        binding["exchange"] = args.exchange or binding["exchange"]
        binding["routing_keys"] = args.routing_key or binding["routing_keys"]
    return queues, bindings


def _run(consumer: Consumer) -> int:
    try:
        consumer.run()
    except HaltConsumer as exc:
        if exc.exit_code:
            _complain(f"the callback halted the consumer: {exc}")
    except KeyboardInterrupt as exc:
        _complain(f"{exc}: stopped without waiting for the callback; RabbitMQ will redeliver")
        # A callback that hangs could keep the interpreter from ending.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(consumer.exit_code)
    except BaseException as exc:
        _complain(_explain(exc, consumer.exit_code))
    return consumer.exit_code if 0 <= consumer.exit_code <= 255 else 1


def _explain(error: BaseException, exit_code: int) -> str:
    if exit_code == ExitCode.CALLBACK:
        return f"the callback failed: {type(error).__name__}: {error}"
    if exit_code == ExitCode.UNEXPECTED:
        return f"unexpected error, please report it: {type(error).__name__}: {error}"
    return str(error)


def _complain(text: str) -> None:
    """Say what is wrong on standard error, wherever the log goes."""
    print(f"fmconsume: {text}", file=sys.stderr)
