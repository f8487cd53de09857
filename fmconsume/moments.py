"""Writes moments and durations as people read them; any thread may call."""

from __future__ import annotations

from time import localtime, strftime, time

__all__ = ["clock", "duration"]


def clock(moment: float) -> str:
    """Return the time of day, with the date where that is not today's.

    Args:
        moment: Seconds since the epoch.
    """
    then, now = localtime(moment), localtime(time())
    is_today = (then.tm_year, then.tm_yday) == (now.tm_year, now.tm_yday)
    return strftime("%H:%M:%S" if is_today else "%d %b %H:%M:%S", then)


def duration(seconds: float) -> str:
    """Return a duration with a unit that suits its size."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
