"""The sources of the manual, read as the tests need them: sections, entries, samples.

Pure: any thread may call.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["MAN", "Entry", "entries", "samples", "section", "subsections", "unescape"]

#: The folder of the sources.
MAN = Path(__file__).parents[1] / "man"

_ESCAPES = {"\\-": "-", "\\e": "\\", "\\(dq": '"', "\\(aq": "'"}


class Entry(NamedTuple):
    """An entry of a list.

    Attributes:
        tags: The lines that stand out, without fonts.
        body: The lines below, as in the source.
    """

    tags: list[str]
    body: str


def unescape(text: str) -> str:
    """Give a text as a reader sees it."""
    plain = re.sub(r"\\(&|f[BIR])", "", text)
    return re.sub(r"\\(-|e|\((dq|aq))", lambda found: _ESCAPES[found[0]], plain)


def section(page: str, title: str) -> str:
    """Give what stands below a heading of a page's source, up to the next one."""
    return page.split(f"\n.SH {title}\n")[1].split("\n.SH ")[0] + "\n"


def subsections(text: str) -> dict[str, str]:
    """Give what stands below each smaller heading of a section, by that heading."""
    parts = re.split(r"^\.SS (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def entries(text: str) -> list[Entry]:
    """Give the entries in a part of a page's source."""
    return [_read_entry(part) for part in re.split(r"^\.TP\n", text, flags=re.MULTILINE)[1:]]


def _read_entry(part: str) -> Entry:
    first, _, rest = part.partition("\n")
    tags = [first]
    while rest.startswith(".TQ\n"):
        tag, _, rest = rest[len(".TQ\n") :].partition("\n")
        tags.append(tag)
    body = re.split(r"^\.(?:SH|SS|PP)\b", rest, flags=re.MULTILINE)[0]
    return Entry(list(map(_join, tags)), body)


def _join(line: str) -> str:
    """Give the words of a line without its macro; quotes hold words together."""
    if not line.startswith("."):
        return unescape(line)
    words = re.findall(r'"[^"]*"|\S+', line)
    glue = " " if words[0] in (".B", ".I") else ""
    return unescape(glue.join(word.strip('"') for word in words[1:]))


def samples(text: str) -> list[str]:
    """Give the samples in a part of a page's source, as they are to be copied."""
    found = re.findall(r"^\.EX\n(.*?)^\.EE$", text, re.MULTILINE | re.DOTALL)
    return [unescape(sample) for sample in found]
