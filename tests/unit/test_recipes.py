"""Tests of what the man page tells to write: each recipe runs, with the real package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE

PAGE = Path(__file__).parents[2] / "man" / "fmconsume-callbacks.7"


def read_recipe(heading: str) -> str:
    """Give the first block of code below a line of the page, as a reader copies it."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    (code,) = re.findall(r"^\.EX\n(.*?)^\.EE$", text, re.DOTALL | re.MULTILINE)[:1]
    return code.replace(r"\&", "").replace(r"\(dq", '"').replace(r"\-", "-")


def run(folder: Path, *parts: str) -> list[Any]:
    """Run a program in a process of its own, and give the lines of JSON that it prints."""
    program = folder / "program.py"
    program.write_text("\n".join(parts), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", program], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


#: Deliver a message whose callback raises.
RAISE = """
import logging
from fmconsume import Drop, HaltConsumer, Message, Nack
from fmconsume.testing import deliver

async def coroutine(message):
    function(message)

def function(message):
    logging.getLogger("mine").info("begun")
    raise {error}

message = Message(topic="fruit.ripe")
message.id, message.queue = "apple", "basket"
deliver({callback}, message)
"""

#: Print what would be sent.
TRANSPORT = """
import json
from sentry_sdk.transport import Transport

class Printer(Transport):
    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event is not None:
            print(json.dumps({"tags": event["tags"], "exception": event["exception"]["values"]}))

sentry_sdk.get_client().transport = Printer()
"""


def sentry(folder: Path, error: str, callback: str) -> list[Any]:
    """Give the events that Sentry gets when a callback raises."""
    recipe = read_recipe(".SS Sentry").replace("init(", 'init("http://key@localhost/1", ')
    return run(folder, recipe, TRANSPORT, RAISE.format(error=error, callback=callback))


@pytest.mark.parametrize("callback", ["function", "coroutine"])
def test_sentry_exception(tmp_path: Path, callback: str) -> None:
    """An exception of a callback is one event, with the fields of its message."""
    (event,) = sentry(tmp_path, "ValueError('no')", callback)
    assert [each["type"] for each in event["exception"]] == ["ValueError"]
    assert event["tags"] == {
        "message_id": "apple",
        "queue": "basket",
        "topic": "fruit.ripe",
        "attempt": 1,
        "worker": 1,
    }


@pytest.mark.parametrize("error", ["Nack", "Drop", "HaltConsumer"])
def test_sentry_verdict(tmp_path: Path, error: str) -> None:
    """What a callback says about its message is no event."""
    assert sentry(tmp_path, error, "function") == []


STRUCTLOG = """
from fmconsume import Message
from fmconsume.testing import deliver

async def coroutine(message):
    function(message)

def function(message):
    structlog.contextvars.bind_contextvars(user="me")
    structlog.get_logger().warning("begun", n=1)

message = Message(topic="fruit.ripe")
message.id, message.queue = "apple", "basket"
deliver({callback}, message)
structlog.get_logger().info("after")
"""


@pytest.mark.parametrize("callback", ["function", "coroutine"])
def test_structlog(tmp_path: Path, callback: str) -> None:
    """A line of structlog has the fields of its message, beside those that were bound."""
    recipe = read_recipe(".SS structlog")
    first, after = run(tmp_path, recipe, STRUCTLOG.format(callback=callback))
    assert first.pop("timestamp")
    assert first == {
        "event": "begun",
        "level": "warning",
        "n": 1,
        "user": "me",
        "message_id": "apple",
        "queue": "basket",
        "topic": "fruit.ripe",
        "attempt": 1,
        "worker": 1,
    }
    assert set(after) == {"event", "level", "timestamp"}


LOGGING = """
import logging
from fmconsume import Message
from fmconsume.config import LazyConfig
from fmconsume.testing import deliver

LazyConfig().load_config("log.toml").setup_logging()
message = Message()
message.id = "apple"
deliver(lambda message: logging.getLogger("mine").info("begun"), message)
logging.getLogger("mine").info("after")
"""


def test_log_config(tmp_path: Path) -> None:
    """A format of one's own shows the message that runs."""
    (tmp_path / "log.toml").write_text(read_recipe(".SH LOGS AND TRACES"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOGGING],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    lines = [line.partition(" ")[2] for line in done.stderr.splitlines()]
    assert lines == ["[mine INFO] apple: begun", "[mine INFO] -: after"]
