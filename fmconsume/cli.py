"""The command `fmconsume`: reads options and configuration, then consumes, checks or replays.

The main thread runs it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Callable, NoReturn

from . import callbacks, compat, config, console
from .api import Consumer
from .environment import AS_FEDORA_MESSAGING, is_on
from .exceptions import (
    ConfigurationException,
    ExitCode,
    FmconsumeError,
    HaltConsumer,
    StopTimeout,
)
from .log import get_logger, is_stuck, quieten_pika
from .redaction import hide_passwords
from .shortage import shortage
from .text import brief, describe
from .version import __version__
from .wiring import select, topology

__all__ = [
    "command",
    "configure",
    "consume",
    "load_callback",
    "main",
    "parser",
    "perform",
    "run",
]

_log = get_logger(__name__)

#: Commands of fedora-messaging's.
_COMMANDS = {"consume", "publish", "record", "replay", "reconsume"}
_LEVELS = ("debug", "info", "warning", "error", "critical")

_CALLBACK = """
function or class to call with each message, imported by this name; the current directory
is searched too"""
_APP_DIR = """
search this folder for the callback's module, or that of -m, before all others, and not the current
directory; nothing else is relative to it"""
_RELOAD = """
for development: start again whenever a Python file in the current directory, or in that of
--app-dir, or the configuration file has changed; running callbacks finish first"""
_CONFIG = """
TOML configuration file; without it $FMCONSUME_CONF, $FEDORA_MESSAGING_CONF or
/etc/fedora-messaging/config.toml"""
_ALIAS = """
let callbacks and message schemas written for fedora-messaging import fmconsume by that name
although it is installed; where it is not, they do so anyway"""
_MODULE = """
run a module that consumes by itself, as python -m does, perhaps made for fedora-messaging;
whatever follows are its arguments"""
_CHECK = """
only tell whether the consumer would start, and what it would do at the broker; nothing is
changed there, but a callback class is constructed and the file of --record made"""
_RECORD = """
add each message to this file ("-" is standard output), as a line of JSON, and acknowledge it, so
that it is no longer in its queue, unless there is --peek"""
_PEEK = """
with --record: put all messages back once the queues are empty or --limit is reached, and
declare nothing; RabbitMQ marks them as redelivered, and a quorum queue may count that and put
them back in another order"""
_REPLAY = """
call the callback with the messages in this file ("-" is standard input), made by --record or kept
after a failure, without a broker; the exit status is 1 if one fails"""
_FAILED = """
list the messages that are kept in this folder, failures.keep_in by default, the newest first: when
and how often each failed, and of what"""
_REQUEUE = """
publish the messages in this file or folder that were set aside to the queues that they came from,
and remove each file once the broker has confirmed it; a file that cannot be requeued is named and
stays, and the exit status is 1; --check only tells what would be done"""

#: What argparse takes for --reload; whoever is started again does without.
_RELOADS = ("--reload", "--reloa", "--relo", "--rel")

#: Options that go only without those that are named here, beyond what argparse knows of.
_ALONE = {
    "failed": ("check", "drain", "peek", "replay"),
    "reload": ("check", "failed", "record", "replay", "requeue"),
    "requeue": ("drain", "peek", "replay"),
}


def parser() -> argparse.ArgumentParser:
    """Build the argument parser; the man page is made from it too."""
    result = _Parser(
        prog="fmconsume",
        description="Consume messages from RabbitMQ queues with a Python callback.",
    )
    add = result.add_mutually_exclusive_group().add_argument
    add("--callback", metavar="MODULE:OBJECT", help=_CALLBACK)
    add(
        "--callback-file",
        metavar="FILE.py:OBJECT",
        help="the same, taken from a Python file",
    )
    add(
        "--record",
        metavar="FILE",
        help=_RECORD,
    )
    add("-m", metavar="MODULE", dest="module", help=_MODULE)
    add("--failed", metavar="FOLDER", nargs="?", const=True, help=_FAILED)
    add("--requeue", metavar="FILE-OR-FOLDER", help=_REQUEUE)
    add = result.add_mutually_exclusive_group().add_argument
    add("--check", action="store_true", help=_CHECK)
    add(
        "--drain",
        action="store_true",
        help="stop once the queues are empty, but for what the callback returned",
    )
    add("--peek", action="store_true", help=_PEEK)
    add("--replay", metavar="FILE", help=_REPLAY)
    add = result.add_argument
    add("--config", "--conf", metavar="FILE", help=_CONFIG)
    add("--app-dir", metavar="FOLDER", type=_folder, help=_APP_DIR)
    add("--reload", action="store_true", help=_RELOAD)
    add("--as-fedora-messaging", action="store_true", help=_ALIAS)
    add("--version", action="version", version=f"fmconsume {__version__}")
    add = result.add_argument_group("in place of the configuration").add_argument
    add("--queue-name", metavar="QUEUE", help="consume from this queue only")
    add("--exchange", metavar="EXCHANGE", help="bind the queues to this exchange")
    add(
        "--routing-key",
        metavar="KEY",
        action="append",
        help="bind with this key; may be repeated",
    )
    add("--app-name", metavar="NAME", help="name shown to the broker's administrators")
    add("--workers", metavar="N", type=int, help="callbacks that run at the same time")
    add("--limit", metavar="N", type=int, help="stop after this many messages")
    _add_levels(result.add_mutually_exclusive_group().add_argument)
    return result


def _add_levels(add: Callable[..., Any]) -> None:
    text = f"log from this level on: one of {', '.join(_LEVELS)}"
    add("--log-level", metavar="LEVEL", type=str.lower, choices=_LEVELS, help=text)
    for option, level in (("-v", "debug"), ("-q", "warning")):
        text = f"the same as --log-level {level}"
        add(option, dest="log_level", action="store_const", const=level, help=text)


def _folder(path: str) -> str:
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"found {path!r}, expected a folder that exists")
    return path


class _Parser(argparse.ArgumentParser):
    """An argument parser that shows no passwords in its errors and refuses empty values."""

    def _print_message(self, message: str, file: Any = None) -> None:
        # Python 3.9 lets an output that is full or closed change the exit status.
        with suppress(OSError):
            super()._print_message(message, file)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments; refuse an empty value, as an unset shell variable leaves it.

        What follows the name of a module is its own: `arguments` has it.
        """
        given = sys.argv[1:] if args is None else list(args)
        end = given.index("-m") + 2 if "-m" in given else len(given)
        parsed = super().parse_args(given[:end], namespace)
        for name, value in vars(parsed).items():
            if value == "" or (isinstance(value, list) and "" in value):
                self.error(f"argument --{name.replace('_', '-')}: found an empty value")
        for first, others in _ALONE.items():
            for other in others:
                if getattr(parsed, first) and getattr(parsed, other):
                    self.error(f"argument --{other}: not allowed with argument --{first}")
        parsed.options, parsed.arguments = given[:end], given[end:]
        if parsed.peek and not parsed.record:
            self.error("argument --peek: expected --record, too")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit."""
        words = message.partition("unrecognized arguments: ")[2].split()
        if words and words[0] in _COMMANDS:
            message += f"; fedora-messaging's {words[0]} is python -m fmconsume.compat {words[0]}"
            message += ", and fmconsume --callback MODULE:OBJECT consumes"
        super().error(hide_passwords(message))


def command() -> NoReturn:
    """Run the command and exit."""
    run(main)


def run(main: Callable[[], int]) -> NoReturn:
    """Exit as `main` says; after a failure, the callback's threads cannot keep the process."""
    status: Any = ExitCode.UNEXPECTED
    try:
        status = main()
    except SystemExit as exc:  # argparse raised it.
        status = exc.code
        raise
    finally:
        console.end_soon(status if isinstance(status, int) else 0)
    raise SystemExit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes sys.argv.

    Returns:
        The exit status.
    """
    return perform(parser(), _dispatch, argv)


def perform(
    parser: argparse.ArgumentParser,
    dispatch: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Parse arguments, do what they say, and return the exit status; print why it fails."""
    console.prepare()
    args = parser.parse_args(argv)
    try:
        status: Any = dispatch(args)
    except KeyboardInterrupt:  # No consumer ran: it handles this signal itself.
        return 128 + signal.SIGINT
    except BaseException as exc:
        status = _refuse(exc)
    # A callback may give HaltConsumer any exit code. The system keeps only the lowest byte of it,
    # and a failure must not become a success.
    if status:
        status = (isinstance(status, int) and status & 255) or ExitCode.TEMPORARY
    if is_stuck():
        console.end(status)
    return int(status)


def _refuse(exc: BaseException) -> int:
    """Print why nothing is consumed, and return the exit status for that."""
    text, status = _diagnose(exc)
    if status == ExitCode.UNEXPECTED:
        _log.critical("this is a bug", exc_info=exc)
    console.complain(text)
    return status


def _diagnose(exc: BaseException) -> tuple[str, int]:
    """Return a text and an exit status: a person has to act, the cause may pass, or it is a bug."""
    if isinstance(exc, ConfigurationException):
        return str(exc), exc.exit_code
    if callbacks.is_users_own(exc):
        # Every error counts as temporary: a boot that is not over looks like a mistake.
        return _tell_unready(exc), ExitCode.TEMPORARY
    if callbacks.is_of_leaving(exc):  # At the end of a replay.
        _log.error("the callback's __exit__ failed", exc_info=exc)
        return f"the callback failed: {describe(exc)}", ExitCode.CALLBACK
    exc = shortage(exc) or exc
    status = _exit_code(exc)
    return _explain(exc, status), status


def _tell_unready(exc: BaseException) -> str:
    """Log what the callback's module, constructor or __enter__ raised, and say it in a line."""
    _log.error("the callback cannot be made ready", exc_info=exc)
    return f"the callback failed before the first message: {callbacks.locate(exc)}"


def _exit_code(exc: BaseException) -> int:
    if isinstance(exc, FmconsumeError):  # For example a certificate that has expired.
        return exc.exit_code
    if isinstance(exc, OSError):
        return ExitCode.TEMPORARY
    return ExitCode.USAGE if isinstance(exc, ValueError) else ExitCode.UNEXPECTED


def _dispatch(args: argparse.Namespace) -> int:
    if args.reload:
        return _reload(args)
    if args.module:
        return _run_program(args)
    configure(args.config, args.as_fedora_messaging, args.log_level, args.app_name)
    if args.failed or args.requeue:
        return _look_after_kept(args)
    if args.peek:
        return _peek(args)
    callback = _choose_callback(args)
    callbacks.refuse_reactor()
    if args.replay:
        from .recording import replay

        return replay(args.replay, callback, config.conf["body"], args.limit)
    if args.check:
        from .checking import check

        workers = config.conf["workers"] if args.workers is None else args.workers
        return check(callback, topology(*_select(args)), workers)
    return consume(callback, args)


def _reload(args: argparse.Namespace) -> int:
    from .config_file import find_file
    from .reloading import reload

    folders = {args.app_dir or "."}
    if args.callback_file:
        folders.add(os.path.dirname(args.callback_file) or ".")
    options = [word for word in args.options if word not in _RELOADS]
    return reload([*options, *args.arguments], folders, find_file(args.config)[0])


def _select(args: argparse.Namespace) -> tuple[Any, Any]:
    return select(args.queue_name, args.exchange, args.routing_key)


def consume(callback: Any, args: argparse.Namespace) -> int:
    """Consume as the arguments say, and return the exit status.

    Args:
        args: queue_name, exchange and routing_key, and perhaps workers, limit and drain.
    """
    options = {name: getattr(args, name, None) for name in ("workers", "limit")}
    return _run(Consumer(callback, *_select(args), **options, drain=getattr(args, "drain", False)))


def _run_program(args: argparse.Namespace) -> int:
    from .programs import run_program

    # It sets up its own logging, and may load another configuration.
    if args.config:
        config.conf.load_config(args.config)
    if args.as_fedora_messaging or is_on(os.environ.get(AS_FEDORA_MESSAGING, "")):
        compat.install()
    return run_program(args.module, *args.arguments, app_dir=args.app_dir)


def _look_after_kept(args: argparse.Namespace) -> int:
    from .requeueing import requeue, tell_kept

    if args.failed:
        return tell_kept(config.conf["failures"]["keep_in"] if args.failed is True else args.failed)
    return requeue(args.requeue, _check_limit(args.limit), is_dry=args.check)


def _peek(args: argparse.Namespace) -> int:
    from .peeking import peek

    _, queues = select(args.queue_name, None, None)
    return peek(args.record, queues, _check_limit(args.limit), config.conf["body"])


def _check_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise ValueError(f"limit: found {limit}, expected a number of at least 1")
    return limit


def configure(
    path: str | None,
    as_fedora_messaging: bool = False,
    log_level: str | None = None,
    app_name: str | None = None,
) -> None:
    """Load the configuration, stand in for fedora-messaging if it says so, and set up logging.

    Raises:
        ConfigurationException, UnavailableException: It cannot be used.
    """
    config.conf.load_config(path)
    if as_fedora_messaging or config.conf["as_fedora_messaging"]:
        compat.install()
    config.conf.setup_logging()
    quieten_pika()
    if log_level:
        for name in (None, "fmconsume"):
            logging.getLogger(name).setLevel(log_level.upper())
    if app_name:
        config.conf["client_properties"]["app"] = app_name


def _choose_callback(args: argparse.Namespace) -> Any:
    callbacks.search(args.app_dir)
    if args.record:
        from .recording import Recorder

        return Recorder(args.record, args.limit)
    return load_callback(args.callback, args.callback_file)


def load_callback(name: str | None, file: str | None) -> Any:
    """Import the callback of this name, of this file, or of the configuration.

    Raises:
        ConfigurationException: There is none, or it cannot be imported.
        Exception: Whatever else its module raises.
    """
    path = file or name or config.conf["callback"]
    if not path:
        raise ConfigurationException(
            "no callback: give --callback module:object, or set callback in the configuration"
        )
    callback = callbacks.load_from_file(path) if file else callbacks.load_from_module(path)
    if "fedora_messaging" in sys.modules and not config.is_fedora_messaging:
        _log.warning(
            "the callback imported the real fedora_messaging, whose Nack, Drop and HaltConsumer "
            "mean nothing to fmconsume: run it with --as-fedora-messaging, with "
            "as_fedora_messaging = true in the configuration or with $%s",
            AS_FEDORA_MESSAGING,
        )
    return callback


def _run(consumer: Consumer) -> int:
    # A module of the callback's may have set handlers: a consumer alone does without.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        consumer.run()
    except BaseException as exc:
        text = _explain(exc, consumer.exit_code)
        if text:
            console.complain(text)
        is_forced = isinstance(exc, KeyboardInterrupt) and consumer.exit_code > 128
        if is_forced or isinstance(exc, StopTimeout):
            # The interpreter could wait for a callback that hangs.
            console.end(consumer.exit_code)
    return consumer.exit_code


def _explain(error: BaseException, exit_code: int) -> str:
    if callbacks.is_users_own(error):
        return _tell_unready(error)
    if isinstance(error, HaltConsumer) and not callbacks.is_of_leaving(error):
        return f"the callback halted the consumer: {brief(str(error))}" if error.exit_code else ""
    if exit_code == ExitCode.CALLBACK:
        return f"the callback failed: {describe(error)}"
    if exit_code == ExitCode.UNEXPECTED:
        return f"unexpected error, please report it: {describe(error)}"
    if isinstance(error, KeyboardInterrupt):
        return f"{error}: stopped without waiting for the callback; RabbitMQ will redeliver"
    return str(error)
