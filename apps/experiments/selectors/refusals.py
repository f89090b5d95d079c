"""Outcomes that were refused, for whoever operates: of which metric, why, and whose."""

from __future__ import annotations

from django.db.models import QuerySet, Sum

from apps.experiments.models import RefusedOutcomes

# A page shows so many; the API has all.
REFUSALS_SHOWN_MAX = 50


def refusal_rows(metric: str | None = None) -> QuerySet[RefusedOutcomes]:
    """Return the counts of the metric, or of all names; those that grew last come first."""
    rows = RefusedOutcomes.objects.order_by("-last_at", "pk")
    return rows if metric is None else rows.filter(metric_name=metric)


def refusals_by_reason() -> list[tuple[str, str, int]]:
    """Return (metric name, reason, count) of all that was ever refused."""
    rows = RefusedOutcomes.objects.values_list("metric_name", "reason")
    return list(rows.annotate(Sum("count")).order_by("metric_name", "reason"))
