"""What processes have used so far; each part of a stack leads a session of its own."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """CPU in seconds, its own and that of its children that have ended; memory in bytes.

    `resident_bytes` counts a page that processes share once for each of them,
    `proportional_bytes` once in all.
    """

    pid: int
    command: str
    cpu_s: float
    children_cpu_s: float
    resident_bytes: int
    proportional_bytes: int


def cpu_s_by_session() -> dict[int, float]:
    """Return the seconds of CPU that the processes of each session have used."""
    used: dict[int, float] = defaultdict(float)
    for pid in _pids():
        if (fields := _stat(pid)) is not None:
            used[int(fields[3])] += _cpu_s(fields[11:15])
    return used


def usage_of(pids: Iterable[int]) -> list[Usage]:
    """Return what each of the processes uses that still lives."""
    found = []
    for pid in sorted(pids):
        if (fields := _stat(pid)) is not None:
            own_s, children_s = _cpu_s(fields[11:13]), _cpu_s(fields[13:15])
            resident = int(fields[21]) * PAGE_BYTES
            command, shared = _command(pid), _proportional(pid)
            found.append(Usage(pid, command, own_s, children_s, resident, shared))
    return found


def descendants(root: int) -> set[int]:
    """Return the process and all that descend from it; some of them lead sessions of their own."""
    stats = {pid: _stat(pid) for pid in _pids()}
    parent_of = {pid: int(fields[1]) for pid, fields in stats.items() if fields is not None}
    found = {root}
    while more := {pid for pid, parent in parent_of.items() if parent in found} - found:
        found |= more
    return found


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state (the third) on; None: it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _cpu_s(ticks: list[str]) -> float:
    return sum(map(int, ticks)) / TICKS_PER_S


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def _proportional(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    rows = (line.split() for line in text.splitlines() if line.startswith("Pss:"))
    return sum(int(row[1]) * 1024 for row in rows)
