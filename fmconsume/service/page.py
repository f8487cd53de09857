"""Draws the status page: HTML that needs nothing from elsewhere; any thread may call.

Whatever comes from outside, a message id or a log line, passes through `_cell` or `escape`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from time import localtime, monotonic, strftime

from ..version import __version__
from .history import MINUTES, STEP, Entry, History, Tally

__all__ = ["POLICY", "render"]

#: Seconds between two refreshes.
_REFRESH = 3
#: Size of the chart in its own units.
_WIDTH, _HEIGHT = 720, 120

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #667079; --line: #dfe3e7; --paper: #fff;
  --ground: #f4f6f8; --good: #1a7f4b; --care: #b25e00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --dim: #98a2ab; --line: #343b42;
  --paper: #1d2226; --ground: #14181b; --good: #4cc38a; --care: #f0a04b; --bad: #f2776d; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { margin: 0; font-size: 1.7rem; }
h1::before { content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .45em;
  border-radius: 50%; background: var(--care); }
h1.good::before { background: var(--good); }
h2 { margin: 0 0 .5rem; font-size: 1rem; }
section { margin-top: 1rem; padding: 1rem 1.2rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: .5rem; overflow-x: auto; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
.dim, th, dt { color: var(--dim); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: .9rem;
  margin: 0; }
dt { font-size: .85rem; } dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.bad { color: var(--bad); }
table { width: 100%; border-collapse: collapse; }
th { font-weight: normal; font-size: .85rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  unicode-bidi: isolate; overflow-wrap: anywhere; }
tr + tr td { border-top: 1px solid var(--line); }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--dim); font-size: 11px; }
.grid { stroke: var(--line); } .curve { fill: none; stroke: var(--good); stroke-width: 1.5; }
.area { fill: var(--good); opacity: .12; }
pre { margin: .3rem 0; white-space: pre-wrap; font-size: .8rem; }
#stale { display: none; } .stale #stale { display: block; } .stale main { opacity: .4; }
"""

_SCRIPT = f"""
setInterval(async () => {{
  if (document.hidden || document.querySelector("details[open]")) return;
  try {{
    const answer = await fetch("/", {{cache: "no-store", signal: AbortSignal.timeout(10000)}});
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
        entries: Log records, oldest first.
    """
    state = history.state
    title = f"{state.name} - fmconsume"
    sections = "".join(
        f"<section>{section}</section>\n"
        for section in (
            _numbers(history),
            _chart(history),
            _queues(history),
            _slowest(history),
            _log(entries),
        )
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
<noscript><meta http-equiv="refresh" content="{_REFRESH}"></noscript>
</head>
<body>
<p id="stale" role="status">The consumer does not answer; what you see is old.</p>
<main>
{_header(history)}
{sections}</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _header(history: History) -> str:
    state, now = history.state, monotonic()
    facts = [
        history.broker,
        f"{state.name} for {_duration(now - history.since)}",
        f"running for {_duration(now - history.started)}",
        f"fmconsume {__version__}",
    ]
    return (
        f'<h1 class="{"good" if state.name == "consuming" else ""}">'
        f"{escape(state.name.capitalize())}</h1>\n<p>{escape(state.text)}</p>\n"
        f'<p class="dim">{escape(" · ".join(filter(None, facts)))}</p>'
    )


def _numbers(history: History) -> str:
    stats, snapshot = history.stats(), history.snapshot
    delivered = history.delivered
    age = "never" if delivered is None else f"{_duration(monotonic() - delivered)} ago"
    numbers = {
        "Messages a second": f"{sum(_rates(history)[-60 // STEP :]) * STEP / 60:.1f}",
        "Last delivery": age,
        "Running": snapshot.running,
        "Prefetched": snapshot.prefetched,
        "Nacks held": snapshot.held,
        "Past callback_timeout": snapshot.overdue,
        "Received": stats.received,
        "Acknowledged": stats.acknowledged,
        "Requeued": stats.requeued,
        "Dropped": stats.dropped,
        "Rejected": stats.rejected,
        "Failed": stats.failed,
        "Not run again": stats.saved,
        "Reconnections": stats.reconnections,
    }
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in numbers.items())}</dl>"


def _rates(history: History) -> list[float]:
    """Return the outcomes a second in each step that is over, oldest first."""
    now = int(monotonic() / STEP)
    first = max(now - MINUTES * 60 // STEP, int(history.started / STEP))
    return [history.rate.get(step, 0) / STEP for step in range(first, now)]


def _chart(history: History) -> str:
    """Draw the rate as a line that ends now, at the right."""
    rates = _rates(history)
    top = _round_up(max(rates, default=0))
    step = _WIDTH / (MINUTES * 60 // STEP - 1)
    line = " ".join(
        f"{_WIDTH - (len(rates) - 1 - number) * step:.1f},{_HEIGHT - rate / top * _HEIGHT:.1f}"
        for number, rate in enumerate(rates)
    )
    ...
