"""Runs Prometheus' own checker."""

from __future__ import annotations

import subprocess

from tests.waiting import PATIENCE


def promtool(*arguments: object, text: bytes = b"") -> str:
    """Run promtool, which must be content, and return all that it prints.

    Args:
        text: Its standard input.
    """
    done = subprocess.run(
        ["promtool", *map(str, arguments)],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
    )
    said = done.stdout.decode()
    assert done.returncode == 0, said
    return said
