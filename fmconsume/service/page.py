"""Renders the status page, HTML that loads nothing from elsewhere; any thread may call.

All text from outside, such as a message id or a log line, passes through `escape`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from itertools import starmap
from math import floor, log10
from time import localtime, monotonic, strftime

from ..delivery import FAIL, SET_ASIDE, Verdict
from ..engine.states import Phase
from ..text import printable
from ..version import __version__
from .history import STEP, STEPS, Entry, History, Slow, Tally

__all__ = ["POLICY", "render"]

#: Seconds between two refreshes.
_REFRESH = 3
#: The verdicts whose counts are shown in red above 0.
_ALARMS = (SET_ASIDE, FAIL)
#: Texts that are shown in red.
_BAD = (SET_ASIDE.value, FAIL.value, "ERROR", "CRITICAL")
#: Size of the chart in its own units.
_WIDTH, _HEIGHT = 720, 120

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #667079; --line: #dfe3e7; --paper: #fff;
  --ground: #f4f6f8; --good: #1a7f4b; --care: #b25e00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --dim: #98a2ab; --line: #343b42;
  --paper: #1d2226; --ground: #14181b; --good: #4cc38a; --care: #f0a04b; --bad: #f2776d; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { margin: 0; font-size: 1.7rem; }
h1::before { content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .45em;
  border-radius: 50%; background: var(--care); }
h1.good::before { background: var(--good); }
h2 { margin: 0 0 .5rem; font-size: 1rem; }
section { margin-top: 1rem; padding: 1rem 1.2rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: .5rem; overflow-x: auto; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
.dim, th, dt { color: var(--dim); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .9rem;
  margin: 0; }
dt { font-size: .85rem; } dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.bad, .bad dd { color: var(--bad); }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .3rem 1.2rem .3rem 0; text-align: left; vertical-align: top;
  white-space: nowrap; unicode-bidi: isolate; }
th { font-weight: normal; font-size: .85rem; vertical-align: bottom; white-space: normal; }
th:last-child, td:last-child { padding-right: 0; }
tr + tr td { border-top: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.text { min-width: 8rem; white-space: normal; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--dim); font-size: 11px; dominant-baseline: hanging; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
.grid { stroke: var(--line); } .curve { fill: none; stroke: var(--good); stroke-width: 1.5; }
pre { margin: .3rem 0; white-space: pre-wrap; font-size: .8rem; }
#stale { display: none; } .stale #stale { display: block; } .stale main { opacity: .4; }
@media (max-width: 45rem) {
  svg { margin-bottom: .7rem; } svg text { font-size: 22px; }
  tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .4rem .9rem;
    padding: .6rem 0; }
  tr:first-child { display: none; } tr + tr + tr { border-top: 1px solid var(--line); }
  tr + tr td { padding: 0; border: 0; } td.number { text-align: left; }
  td::before { content: attr(data-head); display: block; color: var(--dim); font-size: .85rem; }
  .text { grid-column: 1 / -1; } }
"""

_SCRIPT = f"""
setInterval(async () => {{
  if (document.hidden || document.querySelector("details[open]")) return;
  try {{
    const answer = await fetch("/", {{cache: "no-store", signal: AbortSignal.timeout(10000)}});
    if (!answer.ok) throw answer.status;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    document.title = fresh.title;
    document.body.className = "";
  }} catch {{
    document.body.className = "stale";
  }}
}}, {_REFRESH * 1000});
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


#: The Content-Security-Policy of the page: its own style and script, nothing else.
POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render(history: History, entries: Sequence[Entry]) -> str:
    """Return the page.

    Args:
        history: Holds the values.
        entries: Log entries, oldest first.
    """
    parts = [
        _numbers(history),
        _chart(history),
        _queues(history),
        _slowest(history.slowest),
        _entries(entries),
    ]
    sections = "\n".join(f"<section>{part}</section>" for part in parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(history.state.name)} - fmconsume</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
<noscript><meta http-equiv="refresh" content="{_REFRESH}"></noscript>
</head>
<body>
<p id="stale" role="status">The consumer does not answer. This is how it was last seen.</p>
<main>
{_header(history)}
{sections}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _header(history: History) -> str:
    state, now = history.state, monotonic()
    facts = [
        "" if history.broker in state.text else history.broker,
        f"{state.name} for {_duration(now - history.since)}",
        f"started {_duration(now - history.started)} ago",
        f"fmconsume {__version__}",
        history.snapshot.notes,
    ]
    silence = history.silence
    is_good = state.name is Phase.CONSUMING and not silence
    alarm = f'<p class="bad">There is {escape(silence)}.</p>\n' if silence else ""
    return (
        f'<h1 class="{"good" if is_good else ""}">'
        f"{escape(state.name.capitalize())}</h1>\n<p>{escape(state.text)}</p>\n{alarm}"
        f'<p class="dim">{escape(" · ".join(filter(None, facts)))}</p>'
    )


def _numbers(history: History) -> str:
    stats, snapshot = history.stats(), history.snapshot
    numbers = {
        "Last delivery": _ago(history.delivered),
        "Per second": f"{_last_minute(history):.1f}",
        "Running": snapshot.running,
        "Overdue": _Alarm(snapshot.overdue),
        "Prefetched": snapshot.prefetched,
        "Nacks held": snapshot.held,
        "Oldest held": _duration(snapshot.oldest_held) if snapshot.held else "-",
        "Reconnections": stats.reconnections,
        "Received": stats.received,
        "Acknowledged": stats.acknowledged,
        "Requeued": stats.requeued,
        "Dropped": stats.dropped,
        "Rejected": stats.rejected,
        "Set aside": _Alarm(stats.set_aside),
        "Failed": _Alarm(stats.failed),
        "Failed attempts": sum(tally.failed_attempts for tally in history.tallies.values()),
        "Deduplicated": stats.deduplicated,
    }
    return f"<dl>{''.join(starmap(_pair, numbers.items()))}</dl>"


def _pair(name: str, value: object) -> str:
    return f'<div class="{_color(value)}"><dt>{name}</dt><dd>{_text(value)}</dd></div>'


# -- the rate --------------------------------------------------------------


def _rates(history: History) -> list[float]:
    """Return the outcomes per second of each complete step, oldest first."""
    now = int(monotonic() / STEP)
    first = max(now - STEPS, int(history.started / STEP))
    return [history.rate.get(step, 0) / STEP for step in range(first, now)]


def _last_minute(history: History) -> float:
    rates = _rates(history)[-60 // STEP :]
    return sum(rates) / max(len(rates), 1)


def _chart(history: History) -> str:
    """Draw the rate as a line; its right end is now."""
    rates = _rates(history)
    top = _round_up(max(rates, default=0))
    start = STEPS - len(rates)
    points = " ".join(
        f"{(start + number) * _WIDTH / (STEPS - 1):.1f},{_HEIGHT * (1 - rate / top):.1f}"
        for number, rate in enumerate(rates)
    )
    middle, minutes = _HEIGHT / 2, STEP * STEPS / 60
    return f"""<h2>Messages a second</h2>
<svg viewBox="0 -2 {_WIDTH} {_HEIGHT + 20}" role="img" aria-label="The rate over time">
<path class="grid" d="M0 0H{_WIDTH}M0 {middle}H{_WIDTH}M0 {_HEIGHT}H{_WIDTH}"/>
<polyline class="curve" points="{points}"/>
<text y="4">{top:g}</text><text y="{middle + 4}">{top / 2:g}</text>
<text y="{_HEIGHT + 6}">{minutes:g} minutes ago</text>
<text class="middle" x="{_WIDTH / 2}" y="{_HEIGHT + 6}">{minutes / 2:g}</text>
<text class="end" x="{_WIDTH}" y="{_HEIGHT + 6}">now</text>
</svg>"""


def _round_up(value: float) -> float:
    """Round up to 1, 2, 5 or 10 times a power of ten, for the axis; at least 1."""
    power = 10.0 ** floor(log10(max(value, 1.0)))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= value)


# -- the tables ------------------------------------------------------------


def _queues(history: History) -> str:
    rows = []
    for name in sorted({*history.depths, *history.tallies}):
        tally = history.tallies.get(name) or Tally()
        ran = sum(tally.buckets)
        mean = _duration(tally.seconds / ran) if ran else "-"
        counts = [
            _Alarm(count) if verdict in _ALARMS else count
            for verdict, count in tally.verdicts.items()
        ]
        ready = history.depths.get(name, "-")
        rows.append([printable(name), ready, *counts, tally.failed_attempts, mean])
    verdicts = " ".join(f"#{verdict.value.capitalize().replace(' ', '_')}" for verdict in Verdict)
    head = f"*Queue #Ready {verdicts} #Failed_attempts #Mean_time"
    return _table("Queues", head, rows)


def _slowest(slowest: Iterable[Slow]) -> str:
    rows = [
        [_duration(slow.seconds), _clock(slow.ended), slow.outcome, slow.message_id, slow.topic]
        for slow in slowest
    ]
    return _table("Slowest callbacks", "#Took Ended Outcome *Message *Topic", rows)


def _entries(entries: Sequence[Entry]) -> str:
    rows = [[_clock(entry.created), entry.level, entry.text] for entry in reversed(entries)]
    return _table("Last warnings and errors", "Time Level *Text", rows)


def _table(title: str, head: str, rows: Sequence[Sequence[object]]) -> str:
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


class _Alarm(int):
    """A count that is shown in red above 0."""


def _color(value: object) -> str:
    """Give the class of a value that is shown in red; "" for others."""
    return "bad" if value in _BAD or (isinstance(value, _Alarm) and value) else ""


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _fold(text: str) -> str:
    """Escape a text, and hide all lines but the first until somebody clicks."""
    first, _, rest = text.partition("\n")
    if not rest:
        return escape(first)
    return f"<details><summary>{escape(first)}</summary><pre>{escape(rest)}</pre></details>"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _ago(moment: float | None) -> str:
    if moment is None:
        return "none yet"
    seconds = monotonic() - moment
    return "now" if seconds < STEP else f"{_duration(seconds)} ago"


def _clock(timestamp: float) -> str:
    return strftime("%d %b %H:%M:%S", localtime(timestamp))
