"""Feeds the reader of properties with bytes of all kinds: `python -m tests.fuzz_wire 1000000`."""

from __future__ import annotations

import datetime
import decimal
import random
import sys
import time
from typing import Any

from fmconsume.broker.wire import Properties, ordered

#: Different kinds of input, in turn.
_KINDS = 4


class Fuzzer:
    """Makes property lists, most of them damaged.

    Args:
        seed: The same one makes the same lists.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._valid = [self._make_valid() for _ in range(2000)]

    def make(self, number: int) -> bytes:
        """Make a list: random, with a few bytes changed, cut short, or with random headers."""
        rng = self._rng
        if number % _KINDS == 0:
            return rng.randbytes(rng.randrange(200))
        if number % _KINDS == 1:
            return b"\x20\x00" + rng.randbytes(rng.randrange(300))
        encoded = bytearray(rng.choice(self._valid))
        if number % _KINDS == 2:
            return bytes(encoded[: rng.randrange(len(encoded) + 1)])
        for _ in range(rng.randrange(4)):
            encoded[rng.randrange(len(encoded))] = rng.randrange(256)
        return bytes(encoded)

    def _make_valid(self) -> bytes:
        rng = self._rng
        headers = {f"header {number}": self._value(3) for number in range(rng.randrange(6))}
        properties = Properties(headers=headers, timestamp=rng.choice([None, rng.randrange(2**63)]))
        properties.message_id, properties.type = rng.choice([None, "apple"]), rng.choice([None, ""])
        return b"".join(properties.encode())

    def _value(self, depth: int) -> Any:
        rng = self._rng
        plain = [
            *(None, True, "text", b"bytes", rng.randrange(-(2**31), 2**63 - 1), rng.random()),
            *(datetime.datetime(2026, 1, 1), decimal.Decimal("1.5")),
        ]
        nested = [
            [self._value(depth - 1) for _ in range(rng.randrange(4) if depth else 0)],
            {"count": 1, **({"more": self._value(depth - 1)} if depth else {})},
        ]
        return rng.choice(plain + nested)


def main(count: int, seed: int = 0) -> str:
    """Read so many lists, and say what became of them; whatever is raised passes through."""
    fuzzer = Fuzzer(seed)
    unreadable, worst = 0, 0.0
    for number in range(count):
        encoded = fuzzer.make(number)
        begin = time.perf_counter()
        properties = Properties().decode(encoded)
        unreadable += bool(properties.flaw)
        hash(ordered(properties.published))
        worst = max(worst, time.perf_counter() - begin)
    return (
        f"{count} property lists, {unreadable} unreadable, none raised; the slowest took "
        f"{worst * 1000:.1f} ms"
    )


if __name__ == "__main__":
    print(main(int(sys.argv[1]), *map(int, sys.argv[2:])))
