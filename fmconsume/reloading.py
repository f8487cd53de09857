"""Runs the command again and again, whenever a file has changed that it is made of; `--reload`.

The main thread calls it. The consumer is a child process, so that nothing of the old code is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from . import console
from .config_file import mark_file
from .exceptions import ConfigurationException

__all__ = ["reload"]

#: Milliseconds between two looks at the child and at the configuration file.
_TICK = 200


def reload(arguments: Sequence[str], folders: Iterable[str], config_path: str) -> int:
    """Run the command, and again after each change, until a signal ends it.

    Args:
        arguments: The command's, without --reload.
        folders: A change of a Python file in or below them counts.
        config_path: The configuration file, which need not exist.

    Returns:
        The exit status of the last run.

    Raises:
        ConfigurationException: The package watchfiles is missing.
    """
    child = _Child(arguments)
    for changed in _watch(sorted(folders), config_path, child.is_over):
        if changed:
            console.complain(f"{_name(changed)} changed: starting again")
            child.stop()
            child.start()
        elif not child.has_started:
            child.start()
        else:
            child.look()
    return child.wait()


def _watch(
    folders: Sequence[str], config_path: str, is_over: threading.Event
) -> Iterator[set[str]]:
    """Yield the paths that have changed, or none after a while; first when it has begun to watch.

    The configuration file is looked at and not watched: it may not exist yet, be replaced by
    another file, or be alone in a folder full of others.
    """
    try:
        from watchfiles import PythonFilter, watch
    except ImportError as exc:
        raise ConfigurationException(
            "argument --reload: needs the 'dev' extra: pip install 'fmconsume[dev]'"
        ) from exc

    class Sources(PythonFilter):
        ignore_dirs = (*PythonFilter.ignore_dirs, "site-packages")

    is_source = Sources()
    before = mark_file(config_path)
    # Without its filter: it would yield nothing as long as other files change all the time.
    for changes in watch(
        *folders,
        watch_filter=None,
        rust_timeout=_TICK,
        yield_on_timeout=True,
        stop_event=is_over,
        ignore_permission_denied=True,
    ):
        mark = mark_file(config_path)
        changed = {path for change, path in changes if is_source(change, path)}
        # A file that is gone is about to be replaced.
        if mark not in (None, before):
            before = mark
            changed.add(config_path)
        yield changed


def _name(changed: Iterable[str]) -> str:
    first, *others = sorted(map(os.path.relpath, changed))
    return f"{first} and {len(others)} more" if others else first


class _Child:
    """The command in a process of its own. Thread: main, and its signal handlers."""

    def __init__(self, arguments: Sequence[str]) -> None:
        script = sys.argv[0]
        is_module = os.path.basename(script) == "__main__.py"
        # -B: bytecode counts as up to date when source of the same size changes within a second.
        run = [sys.executable, "-B", *(["-m", "fmconsume"] if is_module else [script])]
        self._command = [*run, *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        #: It has had SIGTERM because of a change, and has not ended.
        self._is_stopping = False
        #: It has ended, and that has been told.
        self._is_told = False
        #: A signal has come that ends everything.
        self.is_over = threading.Event()

    @property
    def has_started(self) -> bool:
        """Whether it was started before."""
        return self._process is not None

    def start(self) -> None:
        """Start it, unless a signal has come; from now on signals are the child's."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.on_signal)
        if self.is_over.is_set():
            return
        self._process, self._is_told = subprocess.Popen(self._command), False
        if self.is_over.is_set():  # It came before there was a process to tell.
            self._send(signal.SIGTERM)

    def stop(self) -> None:
        """Stop it as SIGTERM does, and wait as long as its callbacks take."""
        self._is_stopping = True
        self._send(signal.SIGTERM)
        self.wait()
        self._is_stopping = False

    def wait(self) -> int:
        """Return its exit status when it has ended."""
        status = self._process.wait() if self._process else 0
        return 128 - status if status < 0 else status

    def look(self) -> None:
        """Say once that it has ended, which is no reason to end."""
        if self._process and self._process.poll() is not None and not self._is_told:
            self._is_told = True
            console.complain(f"exit status {self.wait()}: waiting for a change")

    def on_signal(self, number: int, _: Any) -> None:
        """Pass a signal on, unless the child has had one: the second does not wait for callbacks.

        A key sends SIGINT to both processes.
        """
        is_first = not self.is_over.is_set()
        self.is_over.set()
        is_key = number == signal.SIGINT and _is_in_foreground()
        if not (is_first and (is_key or self._is_stopping)):
            self._send(number)

    def _send(self, number: int) -> None:
        if self._process:
            self._process.send_signal(number)


def _is_in_foreground() -> bool:
    """Tell whether the keys of a terminal reach this process and its children."""
    with suppress(OSError), open("/dev/tty", "rb") as terminal:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    return False
