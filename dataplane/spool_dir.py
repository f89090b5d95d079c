"""Where a process keeps its spool: a folder of its own, so that siblings and successors may run
at the same time. What a process that is gone could not send is taken over by one that lives.

A locked file beside the folder says that its owner lives; the kernel unlocks it with any death.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from dataplane.spool import Spool


class Lodging:
    """The spool of one process within the folder that all processes of an instance share."""

    def __init__(self, root: Path, name: str, bytes_max: int) -> None:
        root.mkdir(parents=True, exist_ok=True)
        # The folder of all spools.
        self._root = root
        # Our folder's name in it.
        self._name = name
        # Held for as long as we live; before the folder is there, so nobody finds it ownerless.
        self._lock = _lock(root / f"{name}.lock")
        # What waits to be sent.
        self.spool = Spool(root / name, bytes_max)

    async def adopt(self) -> None:
        """Take over what processes that are gone left behind."""
        await asyncio.to_thread(self._adopt)

    def close(self) -> None:
        """Leave what could not be sent to whoever comes next. May be called again."""
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
    """Return the descriptor that holds the lock, or None while somebody else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
