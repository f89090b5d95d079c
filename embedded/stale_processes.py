"""Finds and ends processes of an earlier run that outlived their supervisor.

After a reboot or the reuse of a pid, pids alone would point to wrong processes. So each pid is
recorded with its start time, and only a process that matches both is ended. Each part leads its own
session, by which its children are found: the kernel does not reuse a session's number while a
member of the session lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 5.0
POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """One line of /proc: `started` is in clock ticks since boot."""

    pid: int
    session: int
    started: int


def read_process(pid: int) -> Process | None:
    """Return the process with this pid, or None if it does not exist or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        return None
    # The second field is the command in parentheses, which may contain parentheses and spaces.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return Process(pid=pid, session=int(fields[3]), started=int(fields[19]))


def now_ticks() -> int:
    """Return the current time in the unit of /proc: clock ticks since boot."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def living_of(session: int, until_ticks: int) -> list[int]:
    """Return the processes of a session that were started up to `until_ticks`.

    Later processes belong to another session that reuses the number.
    """
    living = filter(None, map(read_process, _all_pids()))
    return [p.pid for p in living if p.session == session and p.started <= until_ticks]


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class ProcessRecord:
    """The file that records the processes started by the stack of this state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started_by_pid: dict[int, int] = {}

    def add(self, pid: int) -> None:
        if (process := read_process(pid)) is not None:
            self.started_by_pid[pid] = process.started
            self._write()

    def discard(self, pid: int) -> None:
        if self.started_by_pid.pop(pid, None) is not None:
            self._write()

    def _write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        document = {"boot": boot_id(), "processes": list(self.started_by_pid.items())}
        temporary.write_text(json.dumps(document))
        temporary.replace(self.path)

    def leftovers(self) -> list[int]:
        """Return running processes of an earlier run, including their children."""
        try:
            document = json.loads(self.path.read_text())
            recorded = {int(pid): int(started) for pid, started in document["processes"]}
        except (OSError, ValueError, KeyError, TypeError):
            return []
        if document.get("boot") != boot_id():
            return []
        ours = {pid for pid, started in recorded.items() if _is_still_ours(pid, started)}
        living = filter(None, map(read_process, _all_pids()))
        return [p.pid for p in living if p.session in ours and p.started >= recorded[p.session]]


def _is_still_ours(pid: int, started: int) -> bool:
    process = read_process(pid)
    return process is None or process.started == started


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def end_leftovers(record: ProcessRecord) -> int:
    """End the processes of an earlier run; return their number."""
    pids = record.leftovers()
    _signal(pids, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while (rest := record.leftovers()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    _signal(rest, signal.SIGKILL)
    while record.leftovers() and time.monotonic() < deadline + GRACE_S:
        time.sleep(POLL_S)
    return len(pids)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
