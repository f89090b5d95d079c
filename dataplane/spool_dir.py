"""The spool directories of an instance: one per process, so that processes can run side by side.

A running process adopts what a dead one could not send. A locked file beside a directory shows
that its owner is alive; the kernel unlocks it when the process dies.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from dataplane.spool import Spool


class SpoolDir:
    """The spool directory of one process, within the directory of the instance."""

    def __init__(self, root: Path, name: str, bytes_max: int) -> None:
        root.mkdir(parents=True, exist_ok=True)
        # The directory of all spools.
        self._root = root
        # The name of our directory.
        self._name = name
        # Held while we live; taken before the directory exists, so that it is never without an
        # owner.
        self._lock = _lock(root / f"{name}.lock")
        # Messages that wait to be sent.
        self.spool = Spool(root / name, bytes_max)

    async def adopt(self) -> None:
        """Adopt what dead processes left behind."""
        await asyncio.to_thread(self._adopt)

    def close(self) -> None:
        """Leave what could not be sent to another process. May be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _adopt(self) -> None:
        # Before instances had several processes the files were in the root itself.
        self.spool.adopt(self._root)
        for folder in self._root.iterdir():
            if folder.name == self._name or not folder.is_dir():
                continue
            lock_path = folder.with_name(f"{folder.name}.lock")
            lock = _lock(lock_path)
            if lock is None:
                continue
            try:
                self.spool.adopt(folder)
                for leftover in folder.glob("*.tmp"):
                    leftover.unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()
                    lock_path.unlink()
            finally:
                os.close(lock)


def _lock(path: Path) -> int | None:
    """Return the descriptor that holds the lock, or None while another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
