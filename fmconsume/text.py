"""Makes text from others (names, replies, errors) fit to be shown; any thread may call.

A control character can forge a line of the log or command a terminal, and a mark of direction
can let a line read as another one.
"""

from __future__ import annotations

__all__ = ["brief", "describe", "printable", "printable_lines"]

#: Characters at most, unless a caller sets `length`. A name in AMQP has 255 bytes at most.
_LENGTH = 300
#: Python counts these as unprintable. They are part of ordinary writing: spaces, and the joiners
#: of Persian, of the scripts of India and of emoji.
_HARMLESS = "\xa0\u2009\u202f\u3000\u200c\u200d"


def printable(text: object, length: int = _LENGTH) -> str:
    """Escape the characters that cannot be shown safely, and cut a text that is too long.

    Control characters, line and paragraph separators, marks of direction and lone surrogates
    become escapes as Python writes them; letters of every script stay.

    Args:
        text: Any object; its str() counts.
        length: Characters at most.
    """
    line = str(text)
    if not line.isprintable():
        line = _escape(line[: length + 1], _HARMLESS)
    return line if len(line) <= length else f"{line[: length - 3]}..."


def printable_lines(text: str) -> str:
    """Escape a text of several lines as `printable` does; its line feeds and tabs stay."""
    return text if text.isprintable() else _escape(text, _HARMLESS + "\n\t")


def brief(text: str) -> str:
    """Cut a text down to one line of at most 300 printable characters."""
    return printable(" ".join(text[:1000].split()))


def describe(error: BaseException) -> str:
    """Return an exception's type and text in one line; never raise, even if its own str() does."""
    name = type(error).__name__
    try:
        text = brief(str(error))
    except Exception:
        return f"{name} (its text cannot be had)"
    return f"{name}: {text}" if text else name


def _escape(text: str, kept: str) -> str:
    return "".join(
        char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text
    )
