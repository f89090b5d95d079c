"""Measures stable's usual latency and freezes it as the bounds of a rollout's latency check.

Canary and stable are compared with each other, at bounds that are fixed beforehand. Any such bound
is valid; one from few answers only costs power. So a reference goes back as far as it needs for the
plan's number of answers, and uses fewer where the missing ones would take long to arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from apps.rollouts.evidence import LatencyReference
from apps.rollouts.models import Rollout
from apps.rollouts.plans import PlanDocument
from contract import histogram
from contract.histogram import Counts
from contract.routing import BASELINE, STABLE

# The default retention of telemetry; no reference goes further back.
KEEP_TELEMETRY = timedelta(days=14)
RECENT = timedelta(minutes=30)
# The shortest of these periods with enough answers is used: recent answers are most similar.
REACHES = (
    RECENT,
    timedelta(hours=2),
    timedelta(hours=8),
    timedelta(days=1),
    timedelta(days=3),
    timedelta(days=7),
    KEEP_TELEMETRY,
)
# The fewest answers that a p95 can be taken from.
ANSWERS_FEWEST = 30


@dataclass(frozen=True)
class UsualLatency:
    """A histogram of stable's answers, and the time of the first one; None without answers."""

    counts: Counts
    since: datetime | None

    @property
    def n(self) -> int:
        return histogram.total(self.counts)

    def per_second(self, now: datetime) -> float:
        """Return the rate of these answers since the first one."""
        if self.since is None:
            return 0.0
        return self.n / max(1.0, (now - self.since).total_seconds())


def usual_latency(model: str, version: str, *, now: datetime, reach: timedelta) -> UsualLatency:
    """Return the latency of the answers of `version` as stable within `reach`."""
    with connection.cursor() as cursor:
        cursor.execute(STABLE_LATENCY, [model, version, STABLE, BASELINE, now - reach])
        rows = cursor.fetchall()
    counts = {int(index): int(count) for index, count, _ in rows}
    return UsualLatency(counts, min((since for *_, since in rows), default=None))


STABLE_LATENCY = """
    SELECT bucket.key::int, sum(bucket.value::int), min(started_at)
    FROM rollouts_telemetryrow, jsonb_each_text(latency) AS bucket
    WHERE model_name = %s AND version_number = %s AND variant IN (%s, %s) AND ended_at > %s
    GROUP BY 1
"""


def reference_of(
    rollout: Rollout, plan: PlanDocument, now: datetime
) -> tuple[LatencyReference | None, int]:
    """Return stable's frozen quantiles, and the number of answers available for them.

    The first tick with enough answers freezes them for the rest of the rollout.
    """
    if rollout.latency_reference:
        reference = reference_from_json(rollout.latency_reference)
        return reference, reference.n if reference else 0
    usual, is_enough = _gather(rollout, plan.reference_requests_min, now)
    reference = _freeze(usual, plan.latency_slack_us, now) if is_enough else None
    if reference is not None:
        rollout.latency_reference = reference_to_json(reference)
        rollout.save(update_fields=["latency_reference"])
    return reference, usual.n


def _gather(rollout: Rollout, answers_min: int, now: datetime) -> tuple[UsualLatency, bool]:
    """Return the most recent answers that are enough, else all, and whether they are enough."""
    version = str(rollout.baseline.number) if rollout.baseline else ""
    model = str(rollout.model.name)
    usual = usual_latency(model, version, now=now, reach=RECENT)
    for reach in REACHES[1:]:
        if usual.n >= answers_min:
            break
        wider = usual_latency(model, version, now=now, reach=reach)
        if reach == REACHES[1] and wider.n == usual.n and _is_soon(usual, answers_min, now):
            return usual, False
        usual = wider
    return usual, usual.n >= min(answers_min, ANSWERS_FEWEST)


def _is_soon(usual: UsualLatency, answers_min: int, now: datetime) -> bool:
    """Return whether traffic began recently, and its first half hour will bring enough answers."""
    left = RECENT - (now - usual.since) if usual.since else timedelta()
    return usual.n + usual.per_second(now) * max(0.0, left.total_seconds()) >= answers_min


def _freeze(usual: UsualLatency, slack_us: int, now: datetime) -> LatencyReference | None:
    quantiles = [histogram.quantile_us(usual.counts, q) for q in (0.5, 0.95, 0.99)]
    p50, p95, p99 = (None if us is None else histogram.index_of(us + slack_us) for us in quantiles)
    if p95 is None or p99 is None:
        return None
    return LatencyReference(p95=p95, p99=p99, n=usual.n, frozen_at=now, p50=p50, since=usual.since)


def describe_reference(reference: LatencyReference) -> str:
    """Describe the answers behind the bounds; empty in rollouts that did not store it."""
    if reference.since is None:
        return ""
    return f"usual latency from {reference.n:,} answers of stable in the {_reach(reference)} before"


def _reach(reference: LatencyReference) -> str:
    assert reference.since is not None
    span = reference.frozen_at - reference.since
    if span < timedelta(hours=2):
        return f"{max(1, round(span.total_seconds() / 60))} min"
    hours = round(span.total_seconds() / 3_600)
    return f"{hours} h" if hours < 48 else f"{round(hours / 24)} days"


def reference_to_json(reference: LatencyReference | None) -> dict[str, Any]:
    if reference is None:
        return {}
    return {
        "p50": reference.p50,
        "p95": reference.p95,
        "p99": reference.p99,
        "n": reference.n,
        "frozen_at": reference.frozen_at.isoformat(),
        "since": reference.since.isoformat() if reference.since else None,
    }


def reference_from_json(stored: dict[str, Any]) -> LatencyReference | None:
    if not stored:
        return None
    since = stored.get("since")
    return LatencyReference(
        p50=stored.get("p50"),
        p95=stored["p95"],
        p99=stored["p99"],
        n=stored["n"],
        frozen_at=datetime.fromisoformat(stored["frozen_at"]),
        since=datetime.fromisoformat(since) if since else None,
    )
