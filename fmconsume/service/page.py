"""Renders the status page, HTML that loads nothing from elsewhere; any thread may call.

All text from outside, such as a message id or a log line, passes through `escape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import floor, log10
from time import monotonic, time

from ..delivery import FAIL, SET_ASIDE, Verdict
from ..engine.states import Run
from ..moments import clock, duration
from ..text import printable
from ..version import __version__
from .history import STEP, STEPS, History, Slow, Tally
from .markup import LASTS, OVERDUE, Alarm, draw_numbers, draw_table
from .recent import Entry
from .style import REFRESH, SCRIPT, STYLE
from .troubles import Trouble

__all__ = ["render"]

#: The verdicts whose counts are shown in red above 0.
_ALARMS = (SET_ASIDE, FAIL)
#: Running callbacks that are shown at most, the longest first.
_RUNS = 8
#: Size of the chart in its own units.
_WIDTH, _HEIGHT = 720, 120


def render(history: History, entries: Sequence[Entry]) -> str:
    """Return the page.

    Args:
        history: Holds the values.
        entries: Log entries, oldest first.
    """
    parts = [
        _runs(history.runs()),
        _numbers(history),
        _queues(history),
        _chart(history),
        _troubles(history.troubles.all),
        _entries(entries),
        _slowest(history.slowest),
    ]
    sections = "\n".join(f"<section>{part}</section>" for part in parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(_title(history))}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
<noscript><meta http-equiv="refresh" content="{REFRESH}"></noscript>
</head>
<body>
<p id="stale" role="status">The consumer does not answer. This is how it was last seen.</p>
<main>
{_header(history)}
{sections}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _title(history: History) -> str:
    identity = history.identity
    return f"{history.state.name} - {identity.app if identity else 'fmconsume'}"


def _header(history: History) -> str:
    state, trouble, now = history.state, history.troubles.present, monotonic()
    color, word = _judge(history)
    seconds = time() - trouble.began if trouble else now - history.since
    facts = [
        str(history.identity or ""),
        "" if history.broker in state.text else history.broker,
        f"{trouble.phase if trouble else state.name} for {duration(seconds)}",
        f"started {duration(now - history.started)} ago",
        f"fmconsume {__version__}",
        history.snapshot.notes,
    ]
    alarms = [f"There is {history.silence}." if history.silence else "", _set_aside(history)]
    lines = "".join(f'<p class="bad">{escape(alarm)}</p>\n' for alarm in alarms if alarm)
    return (
        f'<h1 class="{color}">{escape(state.name.capitalize())} <small>{word}</small></h1>\n'
        f"<p>{escape(state.text)}</p>\n{lines}"
        f'<p class="dim">{escape(" · ".join(filter(None, facts)))}</p>'
    )


def _judge(history: History) -> tuple[str, str]:
    """Give the color of the state, and the same in words for who does not see it."""
    phase = history.state.name
    if history.is_consuming and phase.needs_attention:
        return "care", "needs attention"
    if history.is_consuming:
        is_recent = time() - history.set_aside < STEP * STEPS
        return ("care", "messages are set aside") if is_recent else ("good", "no trouble")
    is_bad = bool(history.silence or history.troubles.present)
    return "bad" if is_bad else "care", "nothing is consumed"


def _set_aside(history: History) -> str:
    count = sum(tally.verdicts[SET_ASIDE] for tally in history.tallies.values())
    if not count:
        return ""
    were = "message was" if count == 1 else "messages were"
    return f"{count:,} {were} set aside, the last one at {clock(history.set_aside)}."


def _numbers(history: History) -> str:
    stats, snapshot = history.stats(), history.snapshot
    return draw_numbers(
        {
            "Last delivery": _ago(history.delivered),
            "Per second": f"{_last_minute(history):.1f}",
            "Busy workers": f"{len(history.runs())} of {snapshot.workers}",
            "Overdue": Alarm(snapshot.overdue),
            "Prefetched": snapshot.prefetched,
            "Nacks held": snapshot.held,
            "Oldest held": duration(snapshot.oldest_held) if snapshot.held else "-",
            "Reconnections": stats.reconnections,
            "Received": stats.received,
            "Acknowledged": stats.acknowledged,
            "Requeued": stats.requeued,
            "Dropped": stats.dropped,
            "Rejected": stats.rejected,
            "Set aside": Alarm(stats.set_aside),
            "Failed": Alarm(stats.failed),
            "Failed attempts": sum(tally.failed_attempts for tally in history.tallies.values()),
            "Deduplicated": stats.deduplicated,
        }
    )


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


def _runs(runs: Sequence[Run]) -> str:
    now = monotonic()
    rows = [
        [
            duration(now - run.began),
            run.worker,
            OVERDUE if run.is_overdue else "in time",
            printable(run.delivery.message_id),
            printable(run.delivery.queue),
        ]
        for run in runs[:_RUNS]
    ]
    return draw_table("Running now", "#For Worker State *Message *Queue", rows)


def _queues(history: History) -> str:
    rows = []
    for name in sorted({*history.depths, *history.tallies}):
        tally = history.tallies.get(name) or Tally()
        ran = sum(tally.durations.buckets)
        mean = duration(tally.durations.seconds / ran) if ran else "-"
        counts = [
            Alarm(count) if verdict in _ALARMS else count
            for verdict, count in tally.verdicts.items()
        ]
        ready, trend = history.depths.get(name, "-"), _trend(history, name)
        rows.append([printable(name), ready, trend, *counts, tally.failed_attempts, mean])
    verdicts = " ".join(f"#{verdict.value.capitalize().replace(' ', '_')}" for verdict in Verdict)
    head = f"*Queue #Ready *Trend {verdicts} #Failed_attempts #Mean_time"
    return draw_table("Queues", head, rows)


def _trend(history: History, queue: str) -> str:
    """Say whether a queue grows, or when it is empty."""
    trend, ready = history.trend(queue), history.depths.get(queue, 0)
    if trend is None:
        return "-"
    if abs(trend) < 1:
        return "steady" if ready else "empty"
    if trend > 0:
        return f"growing by {trend:,.0f} a minute"
    left = f"empty in about {duration(_round(ready * 60 / -trend))}" if ready else "empty now"
    return f"falling by {-trend:,.0f} a minute, {left}"


def _round(seconds: float) -> float:
    """Round a time that is not known to the second."""
    return round(seconds, -1) if seconds >= 10 else round(seconds) or 1.0


def _troubles(troubles: Iterable[Trouble]) -> str:
    rows = [
        [
            trouble.phase,
            clock(trouble.began),
            LASTS if trouble.ended is None else clock(trouble.ended),
            duration((trouble.ended or time()) - trouble.began),
            trouble.text,
        ]
        for trouble in troubles
    ]
    return draw_table("Troubles", "State Began Ended #Lasted *Text", rows[::-1])


def _entries(entries: Sequence[Entry]) -> str:
    rows = [[clock(entry.created), entry.level, _count(entry)] for entry in reversed(entries)]
    return draw_table("Last warnings and errors", "Time Level *Text", rows)


def _count(entry: Entry) -> str:
    """Give the text of an entry, and how often it came at the end of the first line."""
    if entry.times == 1:
        return entry.text
    first, *rest = entry.text.split("\n")
    return "\n".join([f"{first} ({entry.times:,} times, last {clock(entry.last)})", *rest])


def _slowest(slowest: Iterable[Slow]) -> str:
    rows = [
        [duration(slow.seconds), clock(slow.ended), slow.outcome, slow.message_id, slow.topic]
        for slow in slowest
    ]
    return draw_table("Slowest callbacks", "#Took Ended Outcome *Message *Topic", rows)


def _ago(moment: float | None) -> str:
    if moment is None:
        return "none yet"
    seconds = monotonic() - moment
    return "now" if seconds < STEP else f"{duration(seconds)} ago"
