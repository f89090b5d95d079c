"""Whether a worker hangs, or only waits for a core.

A worker shows life from its event loop. One that is stopped, or whose loop does not turn, is
silent and answers nobody; one that others keep from the cores is silent as well, and would be no
better off after a restart. The kernel tells them apart: it counts how long a thread was ready to
run and did not.
"""

from __future__ import annotations

from pathlib import Path

NS_PER_S = 1_000_000_000
# So many times as long a silence is borne where the kernel does not count the waiting.
BLIND_TIMES = 7


class Silence:
    """Seconds without a sign of life in which a process could have given one."""

    def __init__(self, pid: int) -> None:
        # Where the kernel counts for the thread that runs the event loop.
        self._path = Path(f"/proc/{pid}/schedstat")
        # What it had waited for a core when last looked at; None where the kernel does not say.
        self._waited_s = self._read()
        # The silence so far.
        self.seconds = 0.0

    def beat(self) -> None:
        """Take a sign of life."""
        self.seconds = 0.0

    def pass_time(self, elapsed_s: float) -> None:
        """Count `elapsed_s` of silence, less what the process waited for a core in it."""
        before, self._waited_s = self._waited_s, self._read()
        if before is None or self._waited_s is None:
            # It may be starving as well as hanging: be slower to judge.
            self.seconds += elapsed_s / BLIND_TIMES
        else:
            self.seconds += max(0.0, elapsed_s - (self._waited_s - before))

    def _read(self) -> float | None:
        """Return the seconds of waiting for a core so far."""
        try:
            return int(self._path.read_text().split()[1]) / NS_PER_S
        except (OSError, IndexError, ValueError):
            return None
