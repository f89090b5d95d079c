"""Messages on disk until Redis has them: small files, written whole, sent oldest first.

A file is written under a temporary name, synced where that was promised, and renamed, so that it
is there whole or not at all. The spool is bounded in bytes. Blocking: call it from a thread.
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
    """One encoded batch and the stream it belongs to."""

    stream: str
    payload: bytes


class SpoolFull(Exception):
    """The spool holds as many bytes as it may."""


class Spool:
    """The files of one instance, in the order of their names, which is that of their writing."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        # Where the files are; nobody else writes there.
        self._folder = folder
        # Beyond this nothing is taken.
        self._bytes_max = bytes_max
        # One writer at a time: a thread pool may run two calls at once.
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        found = sorted(folder.glob(f"*{SUFFIX}"))
        # Files not sent yet, oldest first, with their sizes.
        self._files: deque[tuple[Path, int]] = deque((path, path.stat().st_size) for path in found)
        # Bytes in all of them.
        self.size_bytes = sum(size for _, size in self._files)
        # The number of the next file.
        self._next = int(found[-1].stem) + 1 if found else 1

    def __len__(self) -> int:
        return len(self._files)

    def append(self, records: list[Record], *, durable: bool) -> None:
        """Write `records` as one file, which survives a power cut if `durable`.

        Raises SpoolFull, OSError.
        """
        data = b"".join(_encode(record) for record in records)
        with self._lock:
            if self.size_bytes + len(data) > self._bytes_max:
                raise SpoolFull(f"the spool holds {self.size_bytes} bytes")
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
        """Take over what a spool in `folder` left, whatever the bound; return how many files."""
        adopted = 0
        with self._lock:
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                target = self._folder / f"{self._next:016d}{SUFFIX}"
                try:
                    size = path.stat().st_size
                    path.rename(target)
                except FileNotFoundError:
                    continue  # Somebody else was faster.
                self._next += 1
                self._files.append((target, size))
                self.size_bytes += size
                adopted += 1
        return adopted

    def oldest(self) -> tuple[Path, list[Record]] | None:
        """Return the oldest file and what it holds, or None when there is none."""
        if not self._files:
            return None
        path, _ = self._files[0]
        return path, _decode(path.read_bytes())

    def remove(self, path: Path) -> None:
        """Delete the oldest file: its records were taken. Does nothing if `path` is not it.

        A sender that was cancelled may already have had it removed.
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
    """Return the records of a file, up to the first that is not whole."""
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
