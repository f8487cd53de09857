"""The messages: JSON such as a build system publishes, numbered and all of one size."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["make_body"]

_BUILD = {
    "build": {
        "id": 2876431,
        "package": "python3.14",
        "version": "3.14.2",
        "release": "1.fc44",
        "epoch": None,
        "state": "successful",
        "tags": ["f44-updates-candidate", "f44-build"],
        "tasks": [{"arch": arch, "seconds": 1271.5} for arch in ("x86_64", "aarch64")],
    },
    "owner": "releng",
    "log": "",
}
_SMALLEST = len(json.dumps({"n": 0, **_BUILD}))


def make_body(number: int, size_bytes: int) -> dict[str, Any]:
    """Make a body that takes up so many bytes as JSON, the number first."""
    filler = size_bytes - _SMALLEST - len(str(number)) + 1
    return {"n": number, **_BUILD, "log": "x" * filler}
