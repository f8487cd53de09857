"""An example of a callback, to try a consumer with; any worker thread may call it."""

from .message import Message

__all__ = ["printer"]


def printer(message: Message) -> None:
    """Print the message to standard output."""
    print(message, flush=True)
