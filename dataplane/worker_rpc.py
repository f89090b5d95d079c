"""Calls between the parent and a worker, over the socket pair that the worker inherits.

Either side calls the other; a frame is its length and MessagePack of (number, name, body), where a
reply has no name. The socket is the queue: messages that are sent before the other side reads are
not lost.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any

import msgspec

log = logging.getLogger("interlock.dataplane")

_LENGTH = struct.Struct("<I")

Handler = Callable[[Any], Awaitable[Any]]


class PeerGone(Exception):
    """The other side ended before it replied."""


class Peer:
    """One end of the socket pair."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handlers: Mapping[str, Handler],
    ) -> None:
        # Frames from the other side.
        self._reader = reader
        # Frames to the other side.
        self._writer = writer
        # The handlers by name of the call.
        self._handlers = handlers
        # The numbers of calls.
        self._numbers = count(1)
        # Calls that wait for their reply.
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        # Calls of the other side in progress, referenced so that they are not garbage collected.
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the other side until it ends."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                frame = msgspec.msgpack.decode(await self._reader.readexactly(length))
                self._take(*frame)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(PeerGone)
        self._writer.close()

    async def call(self, name: str, body: Any = None, timeout_s: float = 2.0) -> Any:
        """Call and return the reply. Raises PeerGone, TimeoutError."""
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(number, name, body)
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            del self._waiting[number]

    def notify(self, name: str, body: Any = None) -> None:
        """Call without waiting for a reply. Raises PeerGone."""
        self._send(0, name, body)

    async def flush(self) -> None:
        """Wait until everything is written to the socket."""
        with suppress(ConnectionError):
            await self._writer.drain()

    def _send(self, number: int, name: str | None, body: Any) -> None:
        if self._writer.is_closing():
            raise PeerGone
        frame = msgspec.msgpack.encode((number, name, body))
        self._writer.write(_LENGTH.pack(len(frame)))
        # Not joined with its length: it may be large.
        self._writer.write(frame)

    def _take(self, number: int, name: str | None, body: Any) -> None:
        if name is None:
            future = self._waiting.get(number)
            if future is not None and not future.done():
                future.set_result(body)
            return
        task = asyncio.get_running_loop().create_task(self._serve(number, name, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, name: str, body: Any) -> None:
        try:
            reply = await self._handlers[name](body)
            if number:
                self._send(number, None, reply)
        except PeerGone:
            pass
        except Exception:
            # The caller waits until its timeout.
            log.exception("a call between parent and worker failed: %s", name)
