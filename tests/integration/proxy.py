"""A TCP proxy that cuts, stalls or slows the line to a broker; its methods are for any thread.

It runs an asyncio loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from tests.waiting import PATIENCE

from .broker import LOOPBACK, Broker

__all__ = ["Proxy"]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """A line to `broker`; `with Proxy(broker) as proxy` ends it.

    Args:
        broker: Where connections go; it may be down for a while.
        port: Where it listens; 0 for any.
    """

    def __init__(self, broker: Broker, port: int = 0) -> None:
        self.broker = broker
        self.accepted = 0  # connections so far, refused ones included
        self._latency = 0.0
        self._chunk: int | None = None  # bytes at a time
        self._links: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._listen(port))

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def url(self, **query: Any) -> str:
        """Return the broker's address by way of this line; arguments as in `Broker.url`."""
        return self.broker.url(port=self.port, **query)

    @property
    def connections(self) -> int:
        """How many connections are up."""
        return len(self._links) // 2

    def cut(self) -> None:
        """Reset (RST) every connection, on both sides; new ones are welcome."""
        self._call(self._cut())

    def stall(self) -> None:
        """Go silent: nothing passes in either direction, not even the end of a connection."""
        self._call(self._set_flowing(False))

    def resume(self) -> None:
        """Let everything pass, also what was held back."""
        self._latency, self._chunk = 0.0, None
        self._call(self._set_flowing(True))

    def slow(self, latency: float = 0.3, chunk: int = 1) -> None:
        """Delay what passes by `latency` seconds, and pass it `chunk` bytes at a time."""
        self._latency, self._chunk = latency, chunk

    def close(self) -> None:
        """Reset every connection and stop listening."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # Inside the loop

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=PATIENCE)

    async def _listen(self, port: int) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server = await asyncio.start_server(self._connect, LOOPBACK, port)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            there = await asyncio.open_connection(LOOPBACK, self.broker.port)
        except OSError:
            _reset(writer)
            return
        self._links |= {writer, there[1]}
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while await self._pass_on(await reader.read(65536), writer):
                pass
        await self._flowing.wait()
        writer.close()
        self._links.discard(writer)

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        await asyncio.sleep(self._latency)
        await self._flowing.wait()
        step = self._chunk or len(data) or 1
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
        return data

    async def _set_flowing(self, flowing: bool) -> None:
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _cut(self) -> None:
        for writer in self._links:
            _reset(writer)
        self._links.clear()

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        self._flowing.set()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # it may have gone by itself
        line: socket.socket = writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
