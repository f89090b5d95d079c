"""Compares assigned with ended requests of each instance: checks cannot see missing requests.

Over a span of telemetry two things hold for each instance and version: requests assigned longer
before its end than any request may take have ended in it, and requests that ended longer after its
beginning were assigned in it. An instance's span ends with its latest telemetry, by its own clock.
Only spans with all of the instance's batches are compared.
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

# Added to the model's timeout: telemetry windows, and a machine that stalls.
SETTLED_MIN = timedelta(seconds=60)
# The part of the span that is compared, neither too new nor too old. Late ends count as well, so
# that in steady traffic a loss below SETTLED_MIN / COMPARED, 10 %, cannot be detected; in a
# generation that is over, nearly every lost request can.
COMPARED = timedelta(minutes=10)
# The maximum age of an instance's latest telemetry, or lag of its clock; beyond it nothing is
# compared. Neither a boot nor a gap may lie within it: a fast clock dates earlier telemetry later.
LAG_MAX = timedelta(minutes=5)


@dataclass(frozen=True)
class Difference:
    """An instance's counts of a version, where assigned and ended requests disagree."""

    instance: str
    model_name: str
    version_number: str
    generation: int
    assigned: int
    ended: int
    # Assigned longer before the end of the span than any request may take.
    assigned_early: int
    # Ended longer after its beginning.
    ended_late: int
    # The longest duration of a request.
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
    """Yield the instances and versions with missing requests, or with ends of unassigned ones."""
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
    """Return the instances whose telemetry since then is complete.

    Instances that restarted, lack a batch, or report dropped batches are left out.
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
