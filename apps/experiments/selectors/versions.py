"""Query outcomes of a version's answers over time, from outcomes that name their request."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

from apps.experiments.models import Metric, VersionOutcomes
from apps.models.models import ModelVersion

# Hours shown separately; labels may arrive late.
HOURS_SHOWN = 14 * 24
DAY = timedelta(days=1)


def outcomes_of(version: ModelVersion, now: datetime) -> list[dict[str, Any]]:
    """Return for each metric the counts of all outcomes, of the last 24 hours and by hour.

    `n` outcomes have the mean `mean`, whose `error` is the standard error of a proportion; None
    for other kinds. Hours are those of the version's answers, oldest first.
    """
    rows = VersionOutcomes.objects.filter(version=version).select_related("metric")
    by_metric: dict[Metric, list[VersionOutcomes]] = {}
    for row in rows.order_by("metric__name", "hour"):
        by_metric.setdefault(row.metric, []).append(row)
    return [_of_metric(metric, hours, now) for metric, hours in by_metric.items()]


def _of_metric(metric: Metric, hours: list[VersionOutcomes], now: datetime) -> dict[str, Any]:
    is_share = metric.kind == Metric.Kind.PROPORTION
    shown = [row for row in hours if row.hour > now - timedelta(hours=HOURS_SHOWN)]
    last_day = [row for row in hours if row.hour > now - DAY]
    return {
        "metric": metric.name,
        "kind": metric.kind,
        "direction": metric.direction,
        "ever": _counts(hours, is_share),
        "last_day": _counts(last_day, is_share),
        "hours": [
            {"hour": row.hour.isoformat(), **_counts([row], is_share)} for row in shown
        ],
    }  # fmt: skip


def _counts(rows: list[VersionOutcomes], is_share: bool) -> dict[str, Any]:
    n = sum(row.n for row in rows)
    if n == 0:
        return {"n": 0, "mean": None, "error": None}
    mean = math.fsum(row.total for row in rows) / n
    error = math.sqrt(max(0.0, mean * (1.0 - mean)) / n) if is_share else None
    return {"n": n, "mean": mean, "error": error}
