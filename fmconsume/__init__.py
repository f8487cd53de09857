"""AMQP consumers for RabbitMQ as one blocking function call."""

from . import api, compat, config, exceptions, message
from .api import Consumer, consume, publish
from .exceptions import Drop, HaltConsumer, Nack
from .message import Message
from .stopping import is_stopping, wait_for_stop
from .version import __version__

compat.offer()

__all__ = [
    "Consumer",
    "Drop",
    "HaltConsumer",
    "Message",
    "Nack",
    "__version__",
    "api",
    "config",
    "consume",
    "exceptions",
    "is_stopping",
    "message",
    "publish",
    "wait_for_stop",
]
