"""The command line of fedora-messaging: `python -m fmconsume.compat consume --callback ...`.

It takes the options and gives the exit statuses of the command `fedora-messaging`. The main
thread runs it.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import urllib.request
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlencode

from .. import callbacks, cli, config, console
from ..api import publish
from ..delivery import ACK
from ..exceptions import (
    ConfigurationException,
    ConnectionException,
    ExitCode,
    PublishException,
    PublishForbidden,
    PublishReturned,
    PublishTimeout,
    UnavailableException,
    ValidationError,
)
from ..jsonlines import load_line, load_message
from ..message import Message
from ..recording import Recorder
from ..testing import deliver
from ..text import describe
from . import install

_DATAGREPPER = "https://apps.fedoraproject.org/datagrepper"
#: Seconds that datagrepper gets to answer.
_PATIENCE = 5


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m fmconsume.compat",
        description="The command line of fedora-messaging, run by fmconsume.",
        allow_abbrev=False,
    )
    result.add_argument("--conf", help="configuration file, or $FEDORA_MESSAGING_CONF")
    commands = result.add_subparsers(metavar="COMMAND", required=True)

    def add(run: Any, *arguments: str, help: str) -> Any:
        made = commands.add_parser(run.__name__[1:], help=help, allow_abbrev=False)
        made.set_defaults(run=run)
        for name in arguments:
            made.add_argument(name, **_ARGUMENTS[name])
        return made

    topology = "--app-name", "--routing-key", "--queue-name", "--exchange"
    callback = "--callback-file", "--callback"
    grepper = "message_id", "--datagrepper-url"
    add(_consume, *callback, *topology, help="call a callback with each message")
    add(_publish, "--exchange", "file", help="publish the messages in a file")
    add(_record, "file", "--limit", *topology, help="write messages to a file").set_defaults(
        app_name="recorder"
    )
    add(_replay, *grepper, help="publish a message from Datagrepper again")
    made = add(_reconsume, *grepper[1:], *callback, help="call a callback with such a message")
    made.add_argument("message_id", type=_uuid)
    return result


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of at least 1")
    return int(text)


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a UUID") from exc


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "--app-name": {"help": "name shown to the broker's administrators"},
    "--callback": {"help": "function or class to call, as module:object"},
    "--callback-file": {"help": "the same, as file.py:object"},
    "--datagrepper-url": {"help": f"by default {_DATAGREPPER}", "default": _DATAGREPPER},
    "--exchange": {"help": "name of the exchange"},
    "--limit": {"help": "how many messages", "type": _number},
    "--queue-name": {"help": "consume from this queue"},
    "--routing-key": {"help": "bind with this key; may be repeated", "action": "append"},
    "file": {"help": "lines of JSON; - is standard input or output"},
    "message_id": {"help": "id of the message"},
}


def _run(args: argparse.Namespace) -> int:
    path = args.conf or os.environ.get("FEDORA_MESSAGING_CONF") or None
    if path and not os.path.isfile(path):
        raise ConfigurationException(f"--conf: {path} is not a file")
    install()
    callbacks.search()
    cli.configure(path, app_name=getattr(args, "app_name", None))
    status: int = args.run(args)
    return status


def _consume(args: argparse.Namespace) -> int:
    callback = _load_callback(args)
    if callback is None:
        return ExitCode.TEMPORARY
    callbacks.refuse_reactor()
    return cli.consume(callback, args)


def _load_callback(args: argparse.Namespace) -> Any:
    """Import the callback; None, with a line that tells why, where that is not possible."""
    try:
        return cli.load_callback(args.callback, args.callback_file)
    except ConfigurationException as exc:
        console.complain(str(exc))
        return None


def _record(args: argparse.Namespace) -> int:
    if args.file != "-":
        with suppress(OSError):  # Recorder tells what is wrong with it.
            open(args.file, "wb").close()
    return cli.consume(Recorder(args.file, args.limit), args)


def _publish(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        try:
            is_standard = args.file == "-"
            file = sys.stdin if is_standard else stack.enter_context(open(args.file, "rb"))
        except OSError as exc:
            raise ConfigurationException(f"cannot read {args.file!r}: {exc.strerror}") from exc
        for number, line in enumerate(file, 1):
            if line.strip():
                status = _publish_line(line, number, args.exchange)
                if status:
                    return status
    return ExitCode.OK


def _publish_line(line: str | bytes, number: int, exchange: str | None) -> int:
    try:
        message = load_line(line, number)
    except ValidationError as exc:
        raise ConfigurationException(str(exc)) from exc
    console.say(f"Publishing message with topic {message.topic}")
    try:
        publish(message, exchange)
    except (PublishReturned, PublishForbidden) as exc:
        return _give_up(exc, errno.EREMOTEIO)
    except (PublishTimeout, ConnectionException) as exc:
        return _give_up(exc, errno.ECONNREFUSED)
    except (PublishException, ValidationError) as exc:
        return _give_up(exc, ExitCode.TEMPORARY)
    return ExitCode.OK


def _give_up(exc: Exception, status: int) -> int:
    console.complain(f"not published: {exc}")
    return status


def _replay(args: argparse.Namespace) -> int:
    message = _fetch(args.message_id, args.datagrepper_url)
    try:
        publish(message)
    except (PublishException, ConnectionException, ValidationError) as exc:
        return _give_up(exc, ExitCode.TEMPORARY)
    console.say(f"published message {args.message_id} again")
    return ExitCode.OK


def _reconsume(args: argparse.Namespace) -> int:
    callback = _load_callback(args)
    if callback is None:
        return ExitCode.TEMPORARY
    message = _fetch(args.message_id, args.datagrepper_url)
    verdicts, error = deliver(callback, message)
    if error is not None:
        console.complain(f"the callback failed: {describe(error)}")
    return ExitCode.OK if verdicts == [ACK] and error is None else ExitCode.TEMPORARY


def _fetch(message_id: str, datagrepper: str) -> Message:
    """Fetch a message from Datagrepper.

    Raises:
        UnavailableException: It has none, or cannot be asked.
    """
    url = f"{datagrepper}/v2/id?{urlencode({'id': message_id, 'is_raw': 'true'})}"
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
            message = load_message(json.load(answer))
    except (OSError, ValueError, ValidationError) as exc:
        text = f"no message {message_id} from {datagrepper}: {exc}"
        raise UnavailableException(text) from exc
    # Its topic has the prefix already.
    config.conf["topic_prefix"] = ""
    return message


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, as `cli.main` does."""
    return cli.perform(_parser(), _run, argv)


if __name__ == "__main__":
    cli.run(main)
