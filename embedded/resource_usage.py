"""Measures CPU and memory of processes; each part of a stack leads its own session."""

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
    """CPU seconds of a process and of its ended children; memory in bytes.

    `resident_bytes` counts a shared page fully for each process, `proportional_bytes` divides it
    among the processes.
    """

    pid: int
    command: str
    cpu_s: float
    children_cpu_s: float
    resident_bytes: int
    proportional_bytes: int


def cpu_s_by_session() -> dict[int, float]:
    """Return the CPU seconds of the processes of each session."""
    used: dict[int, float] = defaultdict(float)
    for pid in _pids():
        if (fields := _stat(pid)) is not None:
            used[int(fields[3])] += _cpu_s(fields[11:15])
    return used


def usage_of(pids: Iterable[int]) -> list[Usage]:
    """Return the usage of each process that is still running."""
    usages = []
    for pid in sorted(pids):
        if (fields := _stat(pid)) is not None:
            own_s, children_s = _cpu_s(fields[11:13]), _cpu_s(fields[13:15])
            resident = int(fields[21]) * PAGE_BYTES
            command, shared = _command(pid), _proportional(pid)
            usages.append(Usage(pid, command, own_s, children_s, resident, shared))
    return usages


def descendants(root: int) -> set[int]:
    """Return the process and all its descendants, some of which lead their own sessions."""
    stats = {pid: _stat(pid) for pid in _pids()}
    parent_of = {pid: int(fields[1]) for pid, fields in stats.items() if fields is not None}
    family = {root}
    while more := {pid for pid, parent in parent_of.items() if parent in family} - family:
        family |= more
    return family


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state (the third) on, or None if it ended."""
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
