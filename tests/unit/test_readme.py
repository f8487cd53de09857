"""Tests of what the README and its annexes tell, as far as no broker is needed."""

from __future__ import annotations

import random
import re
from pathlib import Path
from unittest import mock

from fmconsume import Consumer, Message
from tests.faults.__main__ import faults

HOUSE = Path(__file__).parents[2]
README = (HOUSE / "README.md").read_text(encoding="utf-8")
FAULTS = (HOUSE / "tests/faults/README.md").read_text(encoding="utf-8")

#: A fault, the workers, then how often, how many messages, how many of them lost and run again.
FAULT_ROW = re.compile(r"^\| [^|]+ \| [18] \|(?: [\d,]+ \|){4}$", re.MULTILINE)


def section(text: str, title: str) -> str:
    """Give what stands below a heading, up to the next one of its kind."""
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def test_readme_quotes_the_faults() -> None:
    """The README shows fourteen rows of the table of faults, word for word, and counts its rows."""
    quoted = FAULT_ROW.findall(README)
    rows = FAULT_ROW.findall(FAULTS)
    assert len(quoted) == 14
    assert set(quoted) <= set(rows)
    assert f"fourteen rows of {len(rows)}" in README


def test_faults_table_has_each_fault() -> None:
    """The table of faults has a row for each one that `make faults` runs, and all names."""
    listed = list(faults(Path(), mock.Mock(), 1.0, random.Random(0)))
    assert len(FAULT_ROW.findall(section(FAULTS, "The results"))) == len(listed)
    names = re.findall(r"^\| (`.+`) \|", section(FAULTS, "The faults"), re.MULTILINE)
    assert re.findall(r"`(\S+?)`", "".join(names)) == list(
        dict.fromkeys(fault.name for fault in listed)
    )


def first_cells(table: str) -> list[str]:
    """Give the names in the first column of a table."""
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return re.findall(r"`(\w+)(?:\(\))?`", "".join(cells))


def public(thing: object) -> list[str]:
    """Give the names that an object has for its users, sorted."""
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def test_readme_message_table() -> None:
    """The table of a message's attributes has each of them, and no other."""
    assert sorted(first_cells(section(README, "The message"))) == public(Message())


def test_readme_consumer_table() -> None:
    """The table of a consumer's attributes has each of them and each count, and no other."""
    consumer = Consumer(print)
    table = section(README, "From Python")
    assert sorted(first_cells(table)) == public(consumer)
    (counts,) = re.findall(r"^\| `stats` \|(.+)\|$", table, re.MULTILINE)
    assert re.findall(r"`(\w+)`", counts) == list(vars(consumer.stats))
