"""Tests of what the README and its annexes tell, as far as no broker is needed."""

from __future__ import annotations

import random
import re
from pathlib import Path
from unittest import mock

import pytest
import tomli

from fmconsume.config_checks import check_config
from tests.faults.__main__ import faults
from tests.manual import MAN, samples
from tests.manual import section as section_of

HOUSE = Path(__file__).parents[2]
README = (HOUSE / "README.md").read_text(encoding="utf-8")
FAULTS = (HOUSE / "tests/faults/README.md").read_text(encoding="utf-8")

#: A fault, the workers, then how often, how many messages, how many of them lost and run again.
FAULT_ROW = re.compile(r"^\| [^|]+ \| [18] \|(?: [\d,]+ \|){4}$", re.MULTILINE)


def section(text: str, title: str) -> str:
    """Give what stands below a heading, up to the next one of its kind."""
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def test_readme_sums_up_the_faults() -> None:
    """The README tells how many rows the table of faults has, and the sums of its columns."""
    rows = [row.strip("| ").split(" | ")[2:] for row in FAULT_ROW.findall(FAULTS)]
    sums = [sum(int(cell.replace(",", "")) for cell in column) for column in zip(*rows)]
    (told,) = re.findall(
        r"\[(\d+) runs\]\(tests/faults/README.md\) ([\d,]+) faults struck among ([\d,]+) messages: "
        r"(\d+) were lost, and (\d+) ran again",
        README.replace("\n", " "),
    )
    assert [int(number.replace(",", "")) for number in told] == [len(rows), *sums]


@pytest.mark.parametrize("sample", re.findall(r"^```toml\n(.*?)^```", README, re.M | re.S))
def test_readme_configurations(sample: str) -> None:
    """Each configuration in the README is one that fmconsume accepts."""
    check_config(tomli.loads(sample), "")


def test_manual_begins_as_the_readme() -> None:
    """The page about callbacks begins with the sample that the README begins with."""
    page = (MAN / "fmconsume-callbacks.7").read_text(encoding="utf-8")
    first = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[0]
    assert samples(section_of(page, "SYNOPSIS")) == [first]


def test_readme_leads_to_the_manual() -> None:
    """The README names each page of the manual."""
    pages = re.findall(r"^\| `man (\S+)` \|", section(README, "Where to read on"), re.MULTILINE)
    assert pages == ["fmconsume", "fmconsume.toml", "fmconsume-callbacks"]


def test_faults_table_has_each_fault() -> None:
    """The table of faults has a row for each one that `make faults` runs, and all names."""
    listed = list(faults(Path(), mock.Mock(), 1.0, random.Random(0)))
    assert len(FAULT_ROW.findall(section(FAULTS, "The results"))) == len(listed)
    names = re.findall(r"^\| (`.+`) \|", section(FAULTS, "The faults"), re.MULTILINE)
    assert re.findall(r"`(\S+?)`", "".join(names)) == list(
        dict.fromkeys(fault.name for fault in listed)
    )
