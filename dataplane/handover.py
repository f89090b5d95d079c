"""How workers outlive their parent: they serve on, and the next parent takes over from them.

A worker whose parent was killed (an orphan) knocks at a Unix socket in the state directory. A
parent that finds its port taken opens that door, is handed the listening sockets, and has the
orphans leave once workers of its own are ready: no connection is lost in between.
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

DOOR = "parent.sock"
KNOCK_S = 0.1
GREETING = b"sockets"
LEAVE = b"leave"
# The state directory is one user's own, and both sides are ours: whoever knocks speaks at once.
TALK_S = 2.0
# How long a start waits for a port that is taken by others than orphans.
PORT_WAIT_S = 5.0


class Heir:
    """A parent's end: takes the sockets of orphans, and sends the orphans away."""

    def __init__(self, state_dir: Path) -> None:
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short(state_dir) as path:
            path.unlink(missing_ok=True)
            self._door.bind(str(path))
            path.chmod(0o600)
        self._door.listen()
        # Orphans that serve until our own workers can.
        self._orphans: list[socket.socket] = []
        # Whether our own workers can.
        self._is_ready = False

    def receive(self, timeout_s: float) -> list[socket.socket] | None:
        """Return the listening sockets of the next orphan, or None if none comes in time."""
        self._door.settimeout(timeout_s)
        with suppress(OSError):
            orphan, _ = self._door.accept()
            orphan.settimeout(TALK_S)
            _, descriptors, _, _ = socket.recv_fds(orphan, len(GREETING), 1_024)
            self._orphans.append(orphan)
            return [socket.socket(fileno=number) for number in descriptors]
        return None

    async def welcome(self) -> None:
        """Let in the other orphans, as long as this process lives."""
        loop = asyncio.get_running_loop()
        knocks = asyncio.Event()
        loop.add_reader(self._door, knocks.set)
        try:
            while True:
                await knocks.wait()
                knocks.clear()
                # All orphans hold the same sockets, which came with the first one.
                close_all(self.receive(0.0) or [])
                if self._is_ready:
                    self.dismiss()
        finally:
            loop.remove_reader(self._door)

    @property
    def has_orphans(self) -> bool:
        return bool(self._orphans)

    def dismiss(self) -> None:
        """Have the orphans answer what they hold and leave, now and from now on."""
        self._is_ready = True
        for orphan in self._orphans:
            with suppress(OSError):
                orphan.sendall(LEAVE)
            orphan.close()
        self._orphans.clear()


def take_over_or_bind(config: Config) -> tuple[list[socket.socket], Heir | None]:
    """Return the sockets of an instance, and the heir if orphans had them.

    Raises OSError where the port stays taken. An orphan with other sockets than are wanted now is
    sent away, and its port waited for.
    """
    count = config.group.workers
    give_up_at = monotonic() + PORT_WAIT_S
    heir = None
    while True:
        try:
            claim(config.host, config.port)
            return bind(config.host, config.port, count), None
        except OSError as error:
            if error.errno != errno.EADDRINUSE or monotonic() >= give_up_at:
                raise
        heir = heir or Heir(config.state_dir)
        sockets = heir.receive(KNOCK_S)
        if sockets is None:
            continue
        if len(sockets) == count and sockets[0].getsockname()[1] == config.port:
            log.info("orphans: their sockets are taken over")
            return sockets, heir
        close_all(sockets)
        heir.dismiss()
        give_up_at = monotonic() + PORT_WAIT_S + config.stop_timeout_s


async def await_heir(config: Config, sockets: list[socket.socket]) -> bool:
    """Return when an heir has taken over, or False when none came in the time for it."""
    give_up_at = monotonic() + config.group.orphan_s
    while monotonic() < give_up_at:
        if (heir := _knock(config.state_dir, sockets)) is not None:
            with heir, suppress(OSError):
                # However long its workers take: an heir that dies closes this.
                if await asyncio.get_running_loop().sock_recv(heir, len(LEAVE)) == LEAVE:
                    return True
        await asyncio.sleep(KNOCK_S)
    return False


def _knock(state_dir: Path, sockets: list[socket.socket]) -> socket.socket | None:
    heir = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(state_dir) as path:
            heir.connect(str(path))
        socket.send_fds(heir, [GREETING], [item.fileno() for item in sockets])
        heir.setblocking(False)
    except OSError:
        heir.close()
        return None
    return heir


@contextmanager
def _short(state_dir: Path) -> Iterator[Path]:
    """Give the door's path in a form that fits into the 107 bytes of a socket's address."""
    descriptor = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}/{DOOR}")
    finally:
        os.close(descriptor)
