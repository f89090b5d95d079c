"""Whether all requests that instances assigned have ended: what is missing is invisible to checks.

Over a span of telemetry two things hold for each instance and version: what was assigned longer
before its end than any request may take has ended in it, and what ended longer after its beginning
was assigned in it. Each instance's span ends with what it said last, by its own clock. It is
compared only over spans of which all its batches are here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Count, Max, Min

from apps.models.models import RegisteredModel
from apps.rollouts.models import IngestedBatch, Instance
from contract.messages import STREAM_TELEMETRY

# Longer than a request takes, beside its model's timeout: windows, and a machine that was held up.
SETTLED_MIN = timedelta(seconds=60)
# How much of the span is neither too new nor too old to be compared. What ended late is counted
# as well, so that in steady traffic no loss below SETTLED_MIN / COMPARED, 10 %, can be told; of a
# generation that is over nearly every request can.
COMPARED = timedelta(minutes=10)
# What an instance said last may be so old, or its clock so far behind; beyond it nothing is
# compared. No boot or gap may lie within it either: a fast clock dates what came before it later.
LAG_MAX = timedelta(minutes=5)


@dataclass(frozen=True)
class Difference:
    """What an instance counted of a version, where what it assigned and what ended disagree."""

    instance: str
    model_name: str
    version_number: str
    generation: int
    assigned: int
    ended: int
    # Sent longer before the end of the span than any request may take.
    assigned_early: int
    # Ended longer after its beginning.
    ended_late: int
    # How long a request may take.
    settled: timedelta

    @property
    def text(self) -> str:
        seconds = f"{self.settled.total_seconds():g} s"
        version = f"{self.model_name}:{self.version_number} on instance {self.instance}"
        under = f"under generation {self.generation}"
        if self.ended < self.assigned_early:
            return (
                f"{self.assigned_early} requests were assigned to {version} {under} more than "
                f"{seconds} ago, and {self.ended} have ended since"
            )
        return (
            f"{self.ended_late} requests of {version} ended {under}, "
            f"and {self.assigned} were assigned, counted from {seconds} before"
        )


SUMS = """
    WITH lately AS (
        SELECT instance, model_name, version_number, generation, ended_at, assigned_requests,
               (SELECT coalesce(sum(value::int), 0) FROM jsonb_each_text(ends)) AS ended,
               max(ended_at) OVER (PARTITION BY instance) AS newest
        FROM rollouts_telemetryrow WHERE ended_at > %(oldest)s AND instance = ANY(%(instances)s)
    ), counted AS (
        SELECT *, greatest(newest - %(span)s, %(oldest)s) AS since FROM lately
    ), summed AS (
        SELECT instance, model_name, version_number, generation,
               sum(assigned_requests) AS assigned, sum(ended) AS ended,
               coalesce(sum(assigned_requests) FILTER (WHERE ended_at <= newest - %(settled)s), 0)
                   AS assigned_early,
               coalesce(sum(ended) FILTER (WHERE ended_at > since + %(settled)s), 0) AS ended_late
        FROM counted WHERE ended_at > since GROUP BY 1, 2, 3, 4
    )
    SELECT * FROM summed WHERE ended < assigned_early OR ended_late > assigned ORDER BY 1, 2, 3, 4
"""


def find_differences(now: datetime) -> Iterator[Difference]:
    """Yield where requests are missing, or ended that nobody assigned."""
    longest_ms = RegisteredModel.objects.aggregate(longest=Max("timeout_ms"))["longest"] or 0
    settled = SETTLED_MIN + timedelta(milliseconds=longest_ms)
    span = settled + COMPARED
    oldest = now - span - LAG_MAX
    values: dict[str, Any] = {"oldest": oldest, "span": span, "settled": settled}
    values["instances"] = comparable_instances(oldest)
    with connection.cursor() as cursor:
        cursor.execute(SUMS, values)
        rows = cursor.fetchall()
    for instance, model, version, generation, *counts in rows:
        assigned, ended, early, late = map(int, counts)
        yield Difference(
            instance, model, version, generation, assigned, ended, early, late, settled
        )


def comparable_instances(since: datetime) -> list[str]:
    """Return the instances whose telemetry since then is whole.

    Not those that restarted, of which a batch is missing, or that report that they dropped some.
    """
    dropped = {
        instance.name
        for instance in Instance.objects.all()
        if instance.dropped.get(STREAM_TELEMETRY, 0)
    }
    batches = (
        IngestedBatch.objects.filter(stream=STREAM_TELEMETRY, at__gt=since)
        .values("instance")
        .annotate(
            boots=Count("boot", distinct=True),
            count=Count("id"),
            first=Min("sequence"),
            last=Max("sequence"),
        )
    )
    return [
        row["instance"]
        for row in batches
        if row["boots"] == 1
        and row["count"] == row["last"] - row["first"] + 1
        and row["instance"] not in dropped
    ]
