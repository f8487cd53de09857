"""Tells one consumer from others, by program, machine and process; any thread may call."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from . import config
from .text import printable

__all__ = ["Identity", "identify"]

#: Bytes at most of the program's name and of the machine's in a consumer tag, which has 255. The
#: rest is for the numbers.
_LENGTH = 100


class Identity(NamedTuple):
    """Who consumes.

    Attributes:
        app: `client_properties.app` of the configuration.
        host: The name of this machine.
        pid: The number of the process.
    """

    app: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.app} on {self.host}, process {self.pid}"

    def tag(self, number: int) -> str:
        """Return a consumer tag, which the broker shows beside the queue.

        Source: AMQP 0-9-1, a consumer tag is a short string: 255 bytes at most.

        Args:
            number: Tells the consumers of a session from each other.
        """
        return f"fmconsume.{_cut(self.app)}.{_cut(self.host)}.{self.pid}.{number}"


def identify() -> Identity:
    """Return the identity of this process, with the name that the configuration gives it."""
    app = config.conf["client_properties"].get("app", "")
    return Identity(printable(app), printable(socket.gethostname()), os.getpid())


def _cut(text: str) -> str:
    """Cut a text to _LENGTH bytes, and not within a letter."""
    return text.encode()[:_LENGTH].decode(errors="ignore")
