"""Query counts of refused outcomes by metric, reason and sender, for operators."""

from __future__ import annotations

from django.db.models import QuerySet, Sum

from apps.experiments.models import RefusedOutcomes

# Limit on a page; the API has all.
REFUSALS_SHOWN_MAX = 50


def refusal_rows(metric: str | None = None) -> QuerySet[RefusedOutcomes]:
    """Return the counts of one metric name, or of all names; the last updated come first."""
    rows = RefusedOutcomes.objects.order_by("-last_at", "pk")
    return rows if metric is None else rows.filter(metric_name=metric)


def refusals_by_reason() -> list[tuple[str, str, int]]:
    """Return (metric name, reason, total count) of all refusals."""
    rows = RefusedOutcomes.objects.values_list("metric_name", "reason")
    return list(rows.annotate(Sum("count")).order_by("metric_name", "reason"))
