"""The exceptions that callers catch and callbacks raise; plain data, any thread."""

from __future__ import annotations

import enum
from typing import Any

from .redaction import hide_passwords, redact_value
from .text import printable

__all__ = [
    "AlreadyDone",
    "BadDeclaration",
    "BodiesUnreadable",
    "ConfigurationException",
    "ConnectionException",
    "ConsumeException",
    "ConsumerCanceled",
    "Drop",
    "ExitCode",
    "FmconsumeError",
    "HaltConsumer",
    "Nack",
    "PermissionException",
    "PublishException",
    "PublishForbidden",
    "PublishReturned",
    "PublishTimeout",
    "StopTimeout",
    "UnavailableException",
    "UndecodableError",
    "ValidationError",
]


class ExitCode(enum.IntEnum):
    """Exit statuses of the command.

    A HaltConsumer brings its own; 128 + n means that a second signal, number n, ended it.
    """

    OK = 0
    #: The cause may pass: systemd tries again, as after every status but OK and USAGE.
    TEMPORARY = 1
    #: A person has to change something: systemd does not try again.
    USAGE = 2
    DECLARATION = 10
    UNEXPECTED = 11
    CANCELLED = 12
    CALLBACK = 13
    HANDSHAKE = 14
    PERMISSION = 15
    BODIES = 16
    STOP_TIMEOUT = 17

    # As from Python 3.11 on.
    __str__ = int.__repr__
    __format__ = int.__format__  # type: ignore[assignment]


class FmconsumeError(Exception):
    """Raised when anything in fmconsume fails; the root of the others.

    Attributes:
        exit_code: Exit status of the command if this error ends it.
    """

    exit_code: int = ExitCode.UNEXPECTED


class ConfigurationException(FmconsumeError):
    """Raised when the configuration cannot be used.

    Args:
        message: Every problem found, a line each: key, value found, value expected.
    """

    exit_code = ExitCode.USAGE

    def __init__(self, message: str) -> None:
        self.message = hide_passwords(message)
        super().__init__(self.message)


class UnavailableException(FmconsumeError):
    """Raised when this machine does not have something now: a port, a folder, a thread."""

    exit_code = ExitCode.TEMPORARY


class ValidationError(FmconsumeError):
    """Raised when a message does not decode or does not fit its schema."""

    @property
    def summary(self) -> str:
        """The first line of the error, fit to be shown."""
        lines = str(self).splitlines() or [""]
        return printable(lines[0]) or type(self).__name__


class UndecodableError(ValidationError):
    """Raised when the body or the headers of a message cannot be read at all."""


class ConnectionException(FmconsumeError):
    """Raised when the TLS or AMQP handshake is refused, or the client certificate is out of date.

    A broker that cannot be reached is no such error: fmconsume tries again.

    Args:
        reason: Host and user (never the password) and the broker's answer.
    """

    exit_code = ExitCode.HANDSHAKE

    def __init__(self, *args: Any, reason: str | None = None) -> None:
        if reason is None and args:
            reason = str(args[0])
        self.reason = None if reason is None else hide_passwords(reason)
        super().__init__(*(args or (() if reason is None else (self.reason,))))

    def __str__(self) -> str:
        return hide_passwords(super().__str__())


class PermissionException(FmconsumeError):
    """Raised when the broker refuses access to a queue.

    Args:
        obj_type: "queue", "exchange" or "binding", if known.
        description: The object's name, if known.
        reason: The broker's answer, as text or as pika's exception.
    """

    exit_code = ExitCode.PERMISSION

    def __init__(
        self,
        obj_type: str | None = None,
        description: object | None = None,
        reason: object | None = None,
    ) -> None:
        super().__init__(obj_type, description, reason)
        self.obj_type = obj_type
        self.description = description
        self.reason = reason

    def __str__(self) -> str:
        return self._tell("no permission for")

    def _tell(self, what: str) -> str:
        name = redact_value(str(self.description))
        answer = printable(getattr(self.reason, "reply_text", self.reason))
        return hide_passwords(f"{what} {self.obj_type} {name!r}: {answer}")


class BadDeclaration(PermissionException):
    """Raised when the broker refuses to declare a queue, an exchange or a binding.

    The reason is pika's exception where the broker closed the channel over it.
    """

    exit_code = ExitCode.DECLARATION

    def __str__(self) -> str:
        return self._tell("cannot declare")


class ConsumeException(FmconsumeError):
    """Raised when a callback or the broker changes the course of consuming; root of those below."""


class ConsumerCanceled(ConsumeException):
    """Raised when the broker cancels the consumer and the queue is gone."""

    exit_code = ExitCode.CANCELLED


class BodiesUnreadable(ConsumeException):
    """Raised when none of the first messages decodes, and rejecting them would lose them."""

    exit_code = ExitCode.BODIES


class StopTimeout(ConsumeException):
    """Raised when a consumer has not stopped `stop_timeout` after it began to."""

    exit_code = ExitCode.STOP_TIMEOUT


class Nack(ConsumeException):
    """Raised when a callback wants the message back in its queue."""


class AlreadyDone(ConsumeException):
    """Raised by an inbox when the work of a message was done before: it is acknowledged."""


class Drop(ConsumeException):
    """Raised when a callback wants the message rejected (dead-lettered where the queue says so)."""


class HaltConsumer(ConsumeException):
    """Raised when a callback wants the consumer to stop.

    Args:
        exit_code: Exit status of the command, 0 to 255, read as sys.exit() reads
            its argument: None is 0, and anything that is no integer is the
            reason, with exit status 1.
        reason: Shown to the operator.
        requeue: The message goes back to its queue instead of being acknowledged.
    """

    # Also for subclasses that do not call this constructor.
    exit_code: int = 0
    reason: str | None = None
    requeue: bool = False

    def __init__(
        self,
        exit_code: Any = 0,
        reason: str | None = None,
        requeue: bool = False,
        *args: Any,
    ) -> None:
        super().__init__(exit_code, reason, requeue, *args)
        if exit_code is None:
            exit_code = 0
        if not isinstance(exit_code, int):
            exit_code, reason = 1, reason if reason is not None else str(exit_code)
        self.exit_code = exit_code
        self.reason = reason
        self.requeue = requeue

    def __str__(self) -> str:
        return str(self.reason) if self.reason else f"halted with exit code {self.exit_code}"


class PublishException(FmconsumeError):
    """Raised when a message could not be published.

    Args:
        reason: The broker's answer, as text or as pika's exception, or why it was not asked.
    """

    def __init__(self, reason: object | None = None) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        code, text = getattr(self.reason, "reply_code", ""), getattr(self.reason, "reply_text", "")
        return hide_passwords(f"{code} {printable(text)}" if code else str(self.reason))


class PublishReturned(PublishException):
    """Raised when the broker returns or refuses the message; send it again or give it up."""


class PublishTimeout(PublishException):
    """Raised when no confirmation came in time; the message may have arrived or not."""


class PublishForbidden(PublishException):
    """Raised when the user may not publish to the exchange; trying again will not help."""
