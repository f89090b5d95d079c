"""Handover of listening sockets from workers without a parent to the next parent.

A worker whose parent was killed (an orphan) serves on and connects to a Unix socket in the state
directory. A parent that finds its port in use listens on that socket, receives the listening
sockets of the orphans, and stops the orphans once its own workers are ready: no connection is lost.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from dataplane.config import Config
from dataplane.sockets import bind, claim, close_all

log = logging.getLogger("interlock.dataplane")

SOCKET_NAME = "parent.sock"
CONNECT_INTERVAL_S = 0.1
GREETING = b"sockets"
LEAVE = b"leave"
# The state directory belongs to one user, and both sides are ours: an orphan sends at once.
MESSAGE_TIMEOUT_S = 2.0
# How long a start waits for a port that is used by something other than orphans.
PORT_WAIT_S = 5.0


class Successor:
    """The side of the new parent: receives the sockets of orphans, and stops the orphans."""

    def __init__(self, state_dir: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short(state_dir) as path:
            path.unlink(missing_ok=True)
            self._listener.bind(str(path))
            path.chmod(0o600)
        self._listener.listen()
        # Orphans that serve until our own workers are ready.
        self._orphans: list[socket.socket] = []
        # Whether our own workers are ready.
        self._is_ready = False

    def receive(self, timeout_s: float) -> list[socket.socket] | None:
        """Return the listening sockets of the next orphan, or None if none connects in time."""
        self._listener.settimeout(timeout_s)
        with suppress(OSError):
            orphan, _ = self._listener.accept()
            orphan.settimeout(MESSAGE_TIMEOUT_S)
            _, descriptors, _, _ = socket.recv_fds(orphan, len(GREETING), 1_024)
            self._orphans.append(orphan)
            return [socket.socket(fileno=number) for number in descriptors]
        return None

    async def welcome(self) -> None:
        """Accept the other orphans, as long as this process lives."""
        loop = asyncio.get_running_loop()
        connections = asyncio.Event()
        loop.add_reader(self._listener, connections.set)
        try:
            while True:
                await connections.wait()
                connections.clear()
                # All orphans hold the same sockets, which came with the first one.
                close_all(self.receive(0.0) or [])
                if self._is_ready:
                    self.dismiss()
        finally:
            loop.remove_reader(self._listener)

    @property
    def has_orphans(self) -> bool:
        return bool(self._orphans)

    def dismiss(self) -> None:
        """Stop the orphans, after their last answers: those connected now, and later ones."""
        self._is_ready = True
        for orphan in self._orphans:
            with suppress(OSError):
                orphan.sendall(LEAVE)
            orphan.close()
        self._orphans.clear()


def take_over_or_bind(config: Config) -> tuple[list[socket.socket], Successor | None]:
    """Return the sockets of an instance, and the successor if orphans had them.

    Raises OSError if the port stays in use. An orphan whose sockets do not fit the settings is
    stopped, and its port awaited.
    """
    count = config.group.workers
    give_up_at = monotonic() + PORT_WAIT_S
    successor = None
    while True:
        try:
            claim(config.host, config.port)
            return bind(config.host, config.port, count), None
        except OSError as error:
            if error.errno != errno.EADDRINUSE or monotonic() >= give_up_at:
                raise
        successor = successor or Successor(config.state_dir)
        sockets = successor.receive(CONNECT_INTERVAL_S)
        if sockets is None:
            continue
        if len(sockets) == count and sockets[0].getsockname()[1] == config.port:
            log.info("took over the sockets of orphans")
            return sockets, successor
        close_all(sockets)
        successor.dismiss()
        give_up_at = monotonic() + PORT_WAIT_S + config.stop_timeout_s


async def await_successor(config: Config, sockets: list[socket.socket]) -> bool:
    """Return True when a successor has taken over, or False if none came in time."""
    give_up_at = monotonic() + config.group.orphan_s
    while monotonic() < give_up_at:
        if (successor := _connect(config.state_dir, sockets)) is not None:
            with successor, suppress(OSError):
                # Its workers may take long: a successor that dies closes the connection.
                if await asyncio.get_running_loop().sock_recv(successor, len(LEAVE)) == LEAVE:
                    return True
        await asyncio.sleep(CONNECT_INTERVAL_S)
    return False


def _connect(state_dir: Path, sockets: list[socket.socket]) -> socket.socket | None:
    successor = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(state_dir) as path:
            successor.connect(str(path))
        socket.send_fds(successor, [GREETING], [item.fileno() for item in sockets])
        successor.setblocking(False)
    except OSError:
        successor.close()
        return None
    return successor


@contextmanager
def _short(state_dir: Path) -> Iterator[Path]:
    """Yield the path of the socket, short enough for the 107 bytes of a socket address."""
    descriptor = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
    finally:
        os.close(descriptor)
