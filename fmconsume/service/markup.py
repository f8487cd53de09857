"""Draws the tables and the numbers of the status page; any thread may call.

Text that others chose passes through `escape`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import starmap

from ..delivery import FAIL, SET_ASIDE

__all__ = ["LASTS", "OVERDUE", "Alarm", "draw_numbers", "draw_table"]

#: What is said of a callback, and of a trouble.
OVERDUE, LASTS = "past callback_timeout", "not yet"
#: Texts that are shown in red.
_BAD = (SET_ASIDE.value, FAIL.value, "ERROR", "CRITICAL", OVERDUE, LASTS)


class Alarm(int):
    """A count that is shown in red above 0."""


def draw_numbers(numbers: Mapping[str, object]) -> str:
    """Draw values below their names."""
    return f"<dl>{''.join(starmap(_pair, numbers.items()))}</dl>"


def _pair(name: str, value: object) -> str:
    return f'<div class="{_color(value)}"><dt>{name}</dt><dd>{_text(value)}</dd></div>'


def draw_table(title: str, head: str, rows: Sequence[Sequence[object]]) -> str:
    """Draw a table.

    Args:
        title: Stands above the table.
        head: A word for each column, marked "#" for numbers and "*" for long texts.
        rows: The cells, row by row.
    """
    if not rows:
        return f'<h2>{title}</h2><p class="dim">None.</p>'
    columns = head.split()
    kinds = [{"#": "number", "*": "text"}.get(column[0], "") for column in columns]
    names = [column.strip("#*").replace("_", " ") for column in columns]
    heads = [f'<th class="{kind}">{name}</th>' for kind, name in zip(kinds, names)]
    lines = [heads, *(map(_cell, kinds, names, row) for row in rows)]
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return f"<h2>{title}</h2>\n<table>\n{body}\n</table>"


def _cell(kind: str, name: str, value: object) -> str:
    """Draw a cell; it has the column's name for narrow screens, where each row is a block."""
    style = " ".join(filter(None, (kind, _color(value))))
    return f'<td class="{style}" data-head="{name}">{_fold(_text(value))}</td>'


def _color(value: object) -> str:
    """Give the class of a value that is shown in red; "" for others."""
    return "bad" if value in _BAD or (isinstance(value, Alarm) and value) else ""


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _fold(text: str) -> str:
    """Escape a text, and hide all lines but the first until somebody clicks."""
    first, _, rest = text.partition("\n")
    if not rest:
        return escape(first)
    return f"<details><summary>{escape(first)}</summary><pre>{escape(rest)}</pre></details>"
