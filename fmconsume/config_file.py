"""Finds the configuration file, reads it, and tells whether it has changed; any thread may call."""

from __future__ import annotations

import os
import stat
from typing import Any

from .environment import CONF
from .exceptions import ConfigurationException

__all__ = ["find_file", "mark_file", "read_file"]

_DEFAULT_PATH = "/etc/fedora-messaging/config.toml"
_VARIABLES = (CONF, "FEDORA_MESSAGING_CONF")


def find_file(config_path: str | None) -> tuple[str, str | None]:
    """Return the path of the file, and which variable named it: None if it is the default."""
    if config_path is not None:
        return config_path, ""
    for variable in _VARIABLES:
        if os.environ.get(variable):
            return os.environ[variable], f" (${variable})"
    return _DEFAULT_PATH, None


def read_file(path: str, note: str | None) -> dict[str, Any]:
    """Return the content of the file; nothing if it is the default one and is missing."""
    import tomli  # Not imported with this module, for programs that never load a configuration.

    try:
        with open(path, "rb") as file:
            return tomli.load(file)
    except OSError as exc:
        if note is None and isinstance(exc, FileNotFoundError):
            return {}
        reason = f"cannot read the configuration file {path}{note or ''}: {exc.strerror}"
        raise ConfigurationException(reason) from exc
    except (ValueError, RecursionError) as exc:  # Not TOML, not UTF-8, nested too deep.
        raise ConfigurationException(f"{path} is not valid TOML: {exc}") from exc


def mark_file(path: str) -> object:
    """Return values that change when the file does; None for anything that cannot be read again.

    Only a regular file can: reading a pipe would block.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
