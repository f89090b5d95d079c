"""The worker's side: the queue of bodies, and the process that reads them."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

import msgspec

from dataplane.codec import Spec
from dataplane.errors import Refusal, unavailable
from dataplane.reading.jobs import Done, Job, Refused, too_complex
from dataplane.worker_rpc import Peer, PeerGone

log = logging.getLogger("interlock.dataplane")

# Maximum bodies in the queue.
WAITING_MAX = 256
# Seconds after which reading is given up, and the process killed.
READ_TIMEOUT_S = 10.0
# Seconds after the start of the process in which it still reads bodies that waited for the start.
PATIENCE_S = 1.0
# Memory of the process, as a multiple of the largest body: values, lists and their tensors.
MEMORY_MULTIPLE = 32
MEMORY_BYTES_MIN = 256 * 1024 * 1024
# A body is read again if the process ended meanwhile, because another body may have been at fault.
TRIES_MAX = 2

Answer = Done | Refusal


class Waiting(Protocol):
    """A caller that waits; its `job` is set to the object that it notifies when it hangs up."""

    job: Any


class Item:
    """A body in the queue; `done` is called once, unless its client hangs up first."""

    __slots__ = ("done", "ended", "job", "spec", "tries", "until")

    def __init__(
        self,
        job: Job,
        until: float,
        spec: Callable[[Any], Spec] | None,
        done: Callable[[Answer], None],
    ) -> None:
        # The body.
        self.job = job
        # The deadline, monotonic.
        self.until = until
        # Returns the spec of the model that a plain request names. Raises Refusal.
        self.spec = spec
        # The callback.
        self.done = done
        # Whether `done` was called.
        self.ended = False
        # How often the process started to read it.
        self.tries = 0

    def abandoned(self) -> None:
        """Leave the queue: the client hung up."""
        self.end(Refusal(504, "deadline_exceeded", "the client hung up"))

    def end(self, answer: Answer) -> None:
        if not self.ended:
            self.ended = True
            self.done(answer)


class Reading:
    """Reads bodies one at a time, in order. Its process starts with the first."""

    def __init__(
        self, bytes_max: int = 16 * 1024 * 1024, waiting_bytes_max: int = 64 * 1024 * 1024
    ) -> None:
        # Maximum decompressed size of a body.
        self.bytes_max = bytes_max
        # Maximum bytes in the queue, as sent.
        self._waiting_bytes_max = waiting_bytes_max
        # Bytes in the queue.
        self._waiting_bytes = 0
        # The queue.
        self._waiting: deque[Item] = deque()
        # The body that is being read.
        self._current: Item | None = None
        # The task that reads them; None while the queue is empty.
        self._turns: asyncio.Task[None] | None = None
        # The process, and the connection to it.
        self._process: asyncio.subprocess.Process | None = None
        self._peer: Peer | None = None
        self._line: asyncio.Task[None] | None = None
        # The connection over which a body was read already.
        self._proven: Peer | None = None
        # Set by `close`: no process is started any more.
        self._closed = False
        # Bodies that came while the process started are read until this time, even after their
        # deadline.
        self._patient_until = 0.0

    def read(
        self,
        caller: Waiting,
        job: Job,
        until: float,
        done: Callable[[Answer], None],
        spec: Callable[[Any], Spec] | None = None,
    ) -> None:
        """Queue `job`; `done` gets its content later. Raises Refusal if the queue is full."""
        waiting_bytes = self._waiting_bytes + len(job.body)
        many = len(self._waiting) >= WAITING_MAX or waiting_bytes > self._waiting_bytes_max
        if many or self._closed:
            raise unavailable("reading_busy", "too many large requests wait to be read")
        item = Item(job, until, spec, done)
        caller.job = item
        self._waiting.append(item)
        self._waiting_bytes = waiting_bytes
        if self._turns is None:
            self._turns = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End the process, and refuse the requests that wait for it."""
        self._closed = True
        if self._turns is not None:
            self._turns.cancel()
        for item in (self._current, *self._waiting):
            if item is not None:
                item.end(unavailable("reading_busy", "the instance is stopping"))
        self._waiting.clear()
        self._waiting_bytes = 0
        self._kill()
        if self._process is not None:
            await self._process.wait()
        if self._line is not None:
            await self._line

    async def _run(self) -> None:
        try:
            while self._waiting:
                item = self._current = self._waiting.popleft()
                self._waiting_bytes -= len(item.job.body)
                if item.ended:
                    continue
                if monotonic() > max(item.until, self._patient_until):
                    item.end(
                        Refusal(504, "deadline_exceeded", "the request waited too long to be read")
                    )
                    continue
                try:
                    answer = await self._read(item)
                except Exception:
                    # The bodies behind it must not wait for ever.
                    log.exception("reading: a body could not be read")
                    answer = Refusal(500, "internal_error", "the body could not be read")
                if answer is not None:
                    item.end(answer)
        finally:
            self._current = self._turns = None

    async def _read(self, item: Item) -> Answer | None:
        item.tries += 1
        try:
            peer = await self._started()
            is_new = peer is not self._proven
            is_read, body = await peer.call("read", item.job, READ_TIMEOUT_S)
            if is_new:
                self._proven = peer
                self._patient_until = monotonic() + PATIENCE_S
        except TimeoutError:
            self._kill()
            log.warning("reading: a body of %d bytes took too long", len(item.job.body))
            return too_complex()
        except (PeerGone, OSError):
            if item.tries < TRIES_MAX:
                self._waiting.appendleft(item)
                self._waiting_bytes += len(item.job.body)
                return None
            log.warning("reading: the process ended over a body of %d bytes", len(item.job.body))
            return too_complex()
        return msgspec.convert(body, Done) if is_read else msgspec.convert(body, Refused).refusal()

    async def _started(self) -> Peer:
        if self._peer is not None and self._line is not None and not self._line.done():
            return self._peer
        ours, theirs = socket.socketpair()
        memory_bytes = max(MEMORY_BYTES_MIN, MEMORY_MULTIPLE * self.bytes_max)
        arguments = (str(theirs.fileno()), str(memory_bytes))
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dataplane.reading.process",
                *arguments,
                pass_fds=(theirs.fileno(),),
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        self._peer = Peer(reader, writer, {"spec": self._spec})
        self._line = asyncio.get_running_loop().create_task(self._peer.run())
        return self._peer

    async def _spec(self, model: Any) -> tuple[bool, Spec | Refused]:
        """Return the spec of the model that the current body names, for the process."""
        item = self._current
        try:
            assert item is not None
            assert item.spec is not None
            return True, item.spec(model)
        except Refusal as refusal:
            return False, Refused.of(refusal)

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
        self._peer = None
