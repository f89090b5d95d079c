"""Detects whether a worker hangs, or only waits for a core.

A worker gives signs of life from its event loop. A worker that is stopped, or whose loop does not
turn, is silent and answers no requests; a worker that other processes keep from the cores is silent
as well, and a restart would not help it. The kernel distinguishes the two: it counts how long a
thread was ready to run and did not. It also counts how long a thread ran: a worker that computes
may be processing what many clients sent at once, and gets more time before it counts as hanging.
"""

from __future__ import annotations

from pathlib import Path

NS_PER_S = 1_000_000_000
# Factor on the time limit if the kernel does not count the waiting.
BLIND_TIMES = 7
# Factor on the time limit while the process computes.
BUSY_TIMES = 4


class Silence:
    """Seconds without a sign of life in which the process could have given one."""

    def __init__(self, pid: int) -> None:
        # The kernel's counters of the thread that runs the event loop.
        self._path = Path(f"/proc/{pid}/schedstat")
        # The last values: seconds of running and of waiting for a core; None if the kernel does not
        # count.
        self._counted_s = self._read()
        # The silence so far.
        self.seconds = 0.0

    def beat(self) -> None:
        """Record a sign of life."""
        self.seconds = 0.0

    def pass_time(self, elapsed_s: float) -> None:
        """Add `elapsed_s` of silence, less the time that the process waited for a core."""
        before, self._counted_s = self._counted_s, self._read()
        if before is None or self._counted_s is None:
            # It may be starved instead of hanging: wait longer.
            self.seconds += elapsed_s / BLIND_TIMES
            return
        ran_s, waited_s = (now - then for now, then in zip(self._counted_s, before, strict=True))
        # The kernel may have counted slightly more than what passed here.
        ran_s = min(ran_s, elapsed_s)
        self.seconds += max(0.0, elapsed_s - waited_s - ran_s) + ran_s / BUSY_TIMES

    def _read(self) -> tuple[float, float] | None:
        """Return the seconds of running and of waiting for a core so far."""
        try:
            ran, waited, *_ = self._path.read_text().split()
            return int(ran) / NS_PER_S, int(waited) / NS_PER_S
        except (OSError, ValueError):
            return None
