"""Background loops that no exception ends, and that show when they have stopped turning."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

log = logging.getLogger("interlock.dataplane")

PAUSE_S = 1.0


class Heartbeat:
    """Runs one piece of work again and again; a failing turn is counted and logged once."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        # What the log and the metrics call it.
        self.name = name
        # Monotonic seconds.
        self._clock = clock
        # Turns that raised, since the start.
        self.failures = 0
        # The message of the last failure, None after a turn that went well.
        self.trouble: str | None = None
        # When the last turn ended, well or not; a loop that hangs lets this age.
        self._turned_at = clock()

    @property
    def age_s(self) -> float:
        """Seconds since the last turn ended."""
        return self._clock() - self._turned_at

    def beat(self) -> None:
        """Show life in the middle of a turn that lasts."""
        self._turned_at = self._clock()

    async def run(
        self,
        turn: Callable[[], Awaitable[None]],
        interval_s: float,
        wake: asyncio.Event | None = None,
    ) -> None:
        """Await `turn` for ever: when `wake` is set, and otherwise every `interval_s` seconds.

        After a failure the next turn comes in PAUSE_S.
        """
        if wake is None:
            wake = asyncio.Event()
        while True:
            pause_s = interval_s
            wake.clear()
            try:
                await turn()
                if self.trouble is not None:
                    log.info("%s.recovered", self.name)
                self.trouble = None
            except Exception as error:
                self._failed(error)
                pause_s = PAUSE_S
            self.beat()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await wake.wait()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        trouble = f"{type(error).__name__}: {error}"
        if trouble != self.trouble:
            # The same trouble every second would drown the log.
            log.warning("%s.failed: %s", self.name, trouble)
        self.trouble = trouble
