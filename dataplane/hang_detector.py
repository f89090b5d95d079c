"""Whether a worker hangs, or only waits for a core.

A worker shows life from its event loop. One that is stopped, or whose loop does not turn, is
silent and answers nobody; one that others keep from the cores is silent as well, and would be no
better off after a restart. The kernel tells them apart: it counts how long a thread was ready to
run and did not. It also counts how long a thread ran: one that computes may be at work on what many
clients sent at once, and is given longer before it is taken for one that never ends.
"""

from __future__ import annotations

from pathlib import Path

NS_PER_S = 1_000_000_000
# So many times as long a silence is borne where the kernel does not count the waiting.
BLIND_TIMES = 7
# So many times as long where the process computes all the while.
BUSY_TIMES = 4


class Silence:
    """Seconds without a sign of life in which a process could have given one."""

    def __init__(self, pid: int) -> None:
        # Where the kernel counts for the thread that runs the event loop.
        self._path = Path(f"/proc/{pid}/schedstat")
        # How long it had run, and waited for a core, when last looked at; None where the kernel
        # does not say.
        self._counted_s = self._read()
        # The silence so far.
        self.seconds = 0.0

    def beat(self) -> None:
        """Take a sign of life."""
        self.seconds = 0.0

    def pass_time(self, elapsed_s: float) -> None:
        """Count `elapsed_s` of silence, less what the process waited for a core in it."""
        before, self._counted_s = self._counted_s, self._read()
        if before is None or self._counted_s is None:
            # It may be starving as well as hanging: be slower to judge.
            self.seconds += elapsed_s / BLIND_TIMES
            return
        ran_s, waited_s = (now - then for now, then in zip(self._counted_s, before, strict=True))
        # What the kernel counted may be a little more than what passed here.
        ran_s = min(ran_s, elapsed_s)
        self.seconds += max(0.0, elapsed_s - waited_s - ran_s) + ran_s / BUSY_TIMES

    def _read(self) -> tuple[float, float] | None:
        """Return the seconds of running and of waiting for a core so far."""
        try:
            ran, waited, *_ = self._path.read_text().split()
            return int(ran) / NS_PER_S, int(waited) / NS_PER_S
        except (OSError, ValueError):
            return None
