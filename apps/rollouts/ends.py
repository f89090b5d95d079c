"""Whether all requests that instances assigned have ended: what is missing is invisible to checks.

Over a span of telemetry two things hold for each instance and version: what was assigned longer
before its end than any request may take has ended in it, and what ended longer after its beginning
was assigned in it. An instance is compared only over spans of which all its batches are here.
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

# Longer than a request takes, beside its model's timeout: windows, answers on their way, clocks.
SETTLED_MIN = timedelta(minutes=2)
# How much of the span is neither too new nor too old to be compared.
COMPARED = timedelta(minutes=2)


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
    WITH counted AS (
        SELECT instance, model_name, version_number, generation, ended_at, assigned_requests,
               (SELECT coalesce(sum(value::int), 0) FROM jsonb_each_text(ends)) AS ended,
               max(ended_at) OVER (PARTITION BY instance) AS newest
        FROM rollouts_telemetryrow WHERE ended_at > %(since)s AND instance = ANY(%(instances)s)
    ), summed AS (
        SELECT instance, model_name, version_number, generation,
               sum(assigned_requests) AS assigned, sum(ended) AS ended,
               coalesce(sum(assigned_requests) FILTER (WHERE ended_at <= newest - %(settled)s), 0)
                   AS assigned_early,
               coalesce(sum(ended) FILTER (WHERE ended_at > %(since)s + %(settled)s), 0)
                   AS ended_late
        FROM counted GROUP BY 1, 2, 3, 4
    )
    SELECT * FROM summed WHERE ended < assigned_early OR ended_late > assigned ORDER BY 1, 2, 3, 4
"""


def find_differences(now: datetime) -> Iterator[Difference]:
    """Yield where requests are missing, or ended that nobody assigned."""
    longest_ms = RegisteredModel.objects.aggregate(longest=Max("timeout_ms"))["longest"] or 0
    settled = SETTLED_MIN + timedelta(milliseconds=longest_ms)
    since = now - settled - COMPARED
    instances = comparable_instances(since)
    values: dict[str, Any] = {"since": since, "settled": settled, "instances": instances}
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
