"""Turns figures into a table, a JSON file and a plot. Pure, but for writing the files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .measures import Figure
from .runner import CLIENTS, OURS, Run

__all__ = ["plot", "table", "write"]

_HEADINGS = ("measure", "fmconsume", "against", "ratio (min..max)", "target", "")


def table(figures: Sequence[Figure]) -> str:
    """Lay the figures out in columns, each note below its figure."""
    rows = [_HEADINGS, *map(_cells, figures)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row, note in zip(rows, ["", *(figure.note for figure in figures)]):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if note:
            lines.append(f"    {note}")
    return "\n".join(lines)


def _cells(figure: Figure) -> tuple[str, ...]:
    spread = f"({min(figure.ratios):.2f}..{max(figure.ratios):.2f})"
    return (
        figure.name,
        _quantity(figure.ours, figure.unit),
        _quantity(figure.theirs, figure.unit),
        f"{figure.ratio:.2f} {spread}",
        str(figure.target or "-"),
        {True: "met", False: "NOT MET", None: ""}[figure.is_met],
    )


def _quantity(value: float, unit: str) -> str:
    return f"{value:,.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


def write(
    folder: Path,
    figures: Sequence[Figure],
    runs: Mapping[str, Sequence[Run]],
    circumstances: Mapping[str, Any],
) -> None:
    """Write results.json and, if clients were compared, throughput.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        **circumstances,
        "figures": [_plain(figure) for figure in figures],
        "clients": {
            name: {
                "messages_per_second": [round(run.rate) for run in each],
                "cpu_us_per_message": [round(run.cpu_us, 1) for run in each],
                "resident_mb": [round(run.rss_kb / 1024, 1) for run in each],
            }
            for name, each in runs.items()
        },
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if runs:
        caption = f"{circumstances['size_bytes']} bytes of JSON, one worker, prefetch 100"
        (folder / "throughput.svg").write_text(plot(runs, caption))


def _plain(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "ours": round(figure.ours, 2),
        "theirs": round(figure.theirs, 2),
        "unit": figure.unit.strip(),
        "ratio": round(figure.ratio, 3),
        "ratios": [round(ratio, 3) for ratio in figure.ratios],
        "target": str(figure.target) if figure.target else None,
        "met": figure.is_met,
        "note": figure.note,
    }


# -- the plot --------------------------------------------------------------------------

_NAMES, _BARS, _GAP, _ROW, _TOP = 170, 240, 90, 26, 64

_STYLE = (
    "text{font:13px sans-serif;fill:#222}.title{font-weight:bold}.name{text-anchor:end}"
    ".bar{fill:#9aa7b4}.ours{fill:#2a6fb0}"
)


def plot(runs: Mapping[str, Sequence[Run]], caption: str) -> str:
    """Draw throughput and processor time by client as an SVG, the fastest on top."""
    rate = {name: statistics.median(run.rate for run in each) for name, each in runs.items()}
    cpu = {name: statistics.median(run.cpu_us for run in each) for name, each in runs.items()}
    names = sorted(rate, key=rate.__getitem__, reverse=True)
    second = _NAMES + _BARS + _GAP
    width, height = second + _BARS + _GAP, _TOP + _ROW * len(names) + 10
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><style>{_STYLE}</style>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_label(_NAMES, 24, caption),
        *_label(_NAMES, 48, "messages a second", "title"),
        *_label(second, 48, "CPU, microseconds a message", "title"),
    ]
    for row, name in enumerate(names):
        y = _TOP + _ROW * row
        shapes += _label(_NAMES - 10, y + 14, CLIENTS[name], "name")
        shapes += _bar(_NAMES, y, rate[name] / max(rate.values()), rate[name], name)
        shapes += _bar(second, y, cpu[name] / max(cpu.values()), cpu[name], name)
    return "\n".join([*shapes, "</svg>"]) + "\n"


def _label(x: float, y: float, text: str, style: str = "") -> list[str]:
    return [f'<text class="{style}" x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>']


def _bar(x: float, y: float, part: float, value: float, name: str) -> list[str]:
    width = part * _BARS
    style = "bar ours" if name == OURS else "bar"
    bar = f'<rect class="{style}" x="{x}" y="{y}" width="{width:.1f}" height="18"/>'
    return [bar, *_label(x + width + 6, y + 14, f"{value:,.0f}")]
