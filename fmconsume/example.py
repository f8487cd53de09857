"""Callbacks to begin with; any worker thread may call them."""

from .message import Message

__all__ = ["printer"]


def printer(message: Message) -> None:
    """Print the message to standard output."""
    print(message, flush=True)
