"""Background loops that survive exceptions, and that show when they hang."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

log = logging.getLogger("interlock.dataplane")

PAUSE_S = 1.0


class Heartbeat:
    """Repeats one task; a failing turn is counted, and the same failure is logged once."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        # The name in the log and in metrics.
        self.name = name
        # Monotonic seconds.
        self._clock = clock
        # Turns that failed since the start.
        self.failures = 0
        # The message of the last failure, None after a successful turn.
        self.trouble: str | None = None
        # When the last turn ended, successful or not; it ages while a turn hangs.
        self._turned_at = clock()

    @property
    def age_s(self) -> float:
        """Seconds since the last turn ended."""
        return self._clock() - self._turned_at

    def beat(self) -> None:
        """Give a sign of life during a long turn."""
        self._turned_at = self._clock()

    async def run(
        self,
        turn: Callable[[], Awaitable[None]],
        interval_s: float,
        wake: asyncio.Event | None = None,
    ) -> None:
        """Await `turn` for ever: when `wake` is set, and otherwise every `interval_s` seconds.

        After a failure the next turn starts after PAUSE_S.
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
            # The same failure every second would flood the log.
            log.warning("%s.failed: %s", self.name, trouble)
        self.trouble = trouble
