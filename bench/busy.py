"""Simulates a busy machine with loops that use a share of each core.

`sys.executable -m bench.busy CORE SHARE` is one loop. The measured process runs at the lowest
priority (`Yielding`), so that the loops always get their share.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from embedded.resource_usage import descendants

TURN_S = 0.1
LOWEST = 19
LOOK_S = 0.3


class Loops:
    """One loop for each core."""

    def __init__(self, share: float) -> None:
        self._began = time.monotonic()
        self._loops = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.busy", str(core), str(share)],
                start_new_session=True,
            )
            for core in os.sched_getaffinity(0)
        ]

    def taken(self) -> list[float]:
        """Return the share of its core that each loop has used so far."""
        elapsed_s = time.monotonic() - self._began
        return [_cpu_s(loop.pid) / elapsed_s for loop in self._loops]

    def stop(self) -> None:
        for loop in self._loops:
            loop.kill()
            loop.wait()


@contextmanager
def busy(share: float) -> Iterator[Loops]:
    """Keep `share` of each core busy while the block runs."""
    loops = Loops(share)
    try:
        yield loops
    finally:
        loops.stop()


class Yielding(threading.Thread):
    """Keeps a process and all of its descendants at the lowest priority.

    Niceness is inherited. But if the kernel schedules processes by session (autogroup), the
    priority of the group is not.
    """

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._end = threading.Event()

    def run(self) -> None:
        done: set[int] = set()
        while not self._end.wait(LOOK_S):
            for pid in descendants(self._root) - done:
                with suppress(OSError):
                    Path(f"/proc/{pid}/autogroup").write_text(str(LOWEST))
                    done.add(pid)

    def stop(self) -> None:
        self._end.set()
        self.join()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spin(core: int, share: float) -> None:
    """Use `share` of the core until killed, or until the parent process ends."""
    os.sched_setaffinity(0, {core})
    parent = os.getppid()
    while os.getppid() == parent:
        began = time.monotonic()
        # CPU time, not wall time, so that time lost to others is made up for within the turn.
        until = time.process_time() + share * TURN_S
        while time.process_time() < until:
            pass
        time.sleep(max(0.0, began + TURN_S - time.monotonic()))


if __name__ == "__main__":
    spin(int(sys.argv[1]), float(sys.argv[2]))
