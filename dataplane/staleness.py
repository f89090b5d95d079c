"""The policy for a table that the control plane has not confirmed for long.

`serve` continues as usual; `warn` says so in the headers of every answer and in the log; `fail` is
no longer ready, but still answers. A table that was never confirmed since the start is stale at
once, because its age is unknown. Only a monotonic clock decides.
"""

from __future__ import annotations

import logging

from dataplane.config import StalePolicy
from dataplane.sync import Sync

log = logging.getLogger("interlock.dataplane")


class Staleness:
    """Watches the age of the table for one process."""

    def __init__(self, sync: Sync, policy: StalePolicy, after_s: float) -> None:
        # Has the time of the last confirmation.
        self._sync = sync
        # The policy.
        self._policy = policy
        # The age beyond which it is stale.
        self._after_s = after_s
        # Whether the present state was logged.
        self._warned = False

    @property
    def is_stale(self) -> bool:
        return self._sync.confirmed_at is None or self._sync.table_age_s > self._after_s

    def unready_reason(self) -> str | None:
        """Return why the instance is not ready, if staleness is the reason."""
        if self._policy != "fail" or not self.is_stale:
            return None
        if self._sync.confirmed_at is None:
            return "the control plane has not confirmed the routing table since the start"
        return (
            f"the control plane has not confirmed the routing table for "
            f"{self._sync.table_age_s:.0f} s"
        )

    def header(self) -> bytes:
        """Return the header line of all answers until the next call, or nothing."""
        if self._policy == "serve":
            return b""
        stale = self.is_stale
        if stale is not self._warned:
            self._warned = stale
            log.warning("table.stale" if stale else "table.fresh")
        if not stale or self._policy != "warn":
            return b""
        return b"x-interlock-stale: %d\r\n" % self._sync.table_age_s
