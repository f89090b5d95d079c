"""Counts of how the requests of a rollout ended, for canary and stable."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from apps.rollouts.models import Rollout
from contract.routing import BASELINE, CANARY, STABLE

# Older windows are left out, so that the page of a long rollout stays fast.
SPAN = timedelta(hours=1)
# By the names of the contract, in the order of the page.
WORDS = {
    "answered": "answered",
    "failed": "failed without a response",
    "fell_back": "failed; stable answered",
    "expired": "client deadline expired",
    "shed": "refused: over capacity",
    "bypassed": "not tried: circuit breaker open",
    "abandoned": "closed by the client",
    "refused": "invalid request",
    "cached": "answered from the cache",
}
ENDS = """
    SELECT CASE WHEN variant = %(canary)s THEN variant ELSE %(stable)s END, ended.key,
           sum(ended.value::bigint)
    FROM rollouts_telemetryrow, jsonb_each_text(ends) AS ended
    WHERE split = %(split)s AND variant = ANY(%(variants)s)
      AND ended_at > %(since)s AND ended_at <= %(until)s
    GROUP BY 1, 2
"""


@dataclass(frozen=True)
class EndRow:
    """One kind of request end: counts and shares of canary and stable."""

    words: str
    canary: int
    canary_share: float | None
    stable: int
    stable_share: float | None


def ends_of(rollout: Rollout, now: datetime) -> list[EndRow]:
    """Return the ends in the last hour of the rollout; empty without requests."""
    until = rollout.ended_at or now
    parameters: dict[str, Any] = {
        "split": str(rollout.pk),
        "canary": CANARY,
        "stable": STABLE,
        "variants": [CANARY, STABLE, BASELINE],
        "since": max(rollout.started_at, until - SPAN),
        "until": until,
    }
    with connection.cursor() as cursor:
        cursor.execute(ENDS, parameters)
        counts = {(arm, end): int(count) for arm, end, count in cursor.fetchall()}
    totals = {side: sum(n for (arm, _), n in counts.items() if arm == side)
              for side in (CANARY, STABLE)}  # fmt: skip
    return [
        EndRow(
            words,
            canary,
            canary / totals[CANARY] if totals[CANARY] else None,
            stable,
            stable / totals[STABLE] if totals[STABLE] else None,
        )
        for end, words in WORDS.items()
        if (canary := counts.get((CANARY, end), 0)) + (stable := counts.get((STABLE, end), 0))
    ]
