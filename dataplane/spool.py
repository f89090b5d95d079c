"""Messages on disk until Redis has them: small files, sent oldest first.

A file is written under a temporary name, synced if that was promised, and renamed, so that it
exists completely or not at all. The size of the spool is limited. Blocking: call it from a thread.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

SUFFIX = ".spool"
_RECORD = struct.Struct("<II")


@dataclass(frozen=True)
class Record:
    """One encoded batch and its stream."""

    stream: str
    payload: bytes


class SpoolFull(Exception):
    """The spool has reached its size limit."""


class Spool:
    """The files of one instance, sorted by name, which is the order of writing."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        # The directory of the files; no other process writes there.
        self._folder = folder
        # The size limit.
        self._bytes_max = bytes_max
        # One writer at a time: a thread pool may run two calls at once.
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        paths = sorted(folder.glob(f"*{SUFFIX}"))
        # Files not sent yet, oldest first, with their sizes.
        self._files: deque[tuple[Path, int]] = deque((path, path.stat().st_size) for path in paths)
        # The total size of the files.
        self.size_bytes = sum(size for _, size in self._files)
        # The number of the next file.
        self._next = int(paths[-1].stem) + 1 if paths else 1

    def __len__(self) -> int:
        return len(self._files)

    def append(self, records: list[Record], *, durable: bool) -> None:
        """Write `records` as one file, which survives a power cut if `durable`.

        Raises SpoolFull, OSError.
        """
        data = b"".join(_encode(record) for record in records)
        with self._lock:
            if self.size_bytes + len(data) > self._bytes_max:
                raise SpoolFull(f"the spool is full: {self.size_bytes} bytes")
            path = self._folder / f"{self._next:016d}{SUFFIX}"
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.rename(path)
            if durable:
                sync_folder(self._folder)
            self._next += 1
            self._files.append((path, len(data)))
            self.size_bytes += len(data)

    def adopt(self, folder: Path) -> int:
        """Move the files of another spool in `folder` to this one; return how many.

        The size limit does not apply to them.
        """
        adopted = 0
        with self._lock:
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                target = self._folder / f"{self._next:016d}{SUFFIX}"
                try:
                    size = path.stat().st_size
                    path.rename(target)
                except FileNotFoundError:
                    continue  # Another process was faster.
                self._next += 1
                self._files.append((target, size))
                self.size_bytes += size
                adopted += 1
        return adopted

    def oldest(self) -> tuple[Path, list[Record]] | None:
        """Return the oldest file and its records, or None if there is none."""
        if not self._files:
            return None
        path, _ = self._files[0]
        return path, _decode(path.read_bytes())

    def remove(self, path: Path) -> None:
        """Delete the oldest file: its records were sent. Does nothing if `path` is another.

        A sender that was cancelled may already have removed it.
        """
        with self._lock:
            if self._files and self._files[0][0] == path:
                self.size_bytes -= self._files.popleft()[1]
                path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(record: Record) -> bytes:
    stream = record.stream.encode()
    return _RECORD.pack(len(stream), len(record.payload)) + stream + record.payload


def _decode(data: bytes) -> list[Record]:
    """Return the records of a file, up to the first incomplete one."""
    records = []
    at = 0
    while at + _RECORD.size <= len(data):
        stream_length, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        end = at + stream_length + length
        if end > len(data):
            break
        stream = data[at : at + stream_length].decode()
        records.append(Record(stream, data[at + stream_length : end]))
        at = end
    return records
