"""Query metrics for their pages: definitions, uses, incoming and refused outcomes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Q, QuerySet

from apps.experiments.models import Metric, MetricUse, OutcomeRow
from apps.experiments.selectors.refusals import REFUSALS_SHOWN_MAX, refusal_rows
from apps.lib.errors import NotFound

RECENT = timedelta(hours=24)
# Counting stops here, so that the page stays fast.
COUNTED_MAX = 1_000_000


def metric_rows() -> QuerySet[Metric]:
    """Return all metrics by name, each with the number of experiments that use it."""
    rows = Metric.objects.select_related("outcomes_of", "divided_by")
    return rows.annotate(used=Count("uses")).order_by("name")


def find_metric(name: str) -> Metric:
    """Return the metric. Raises NotFound."""
    metric = Metric.objects.select_related("outcomes_of", "divided_by").filter(name=name).first()
    if metric is None:
        raise NotFound(f"There is no metric named {name}.")
    return metric


def metric_context(metric: Metric, now: datetime) -> dict[str, Any]:
    """Return the template context of a metric's page."""
    uses = MetricUse.objects.filter(metric=metric).select_related("experiment__model")
    derived = Metric.objects.filter(Q(outcomes_of=metric) | Q(divided_by=metric))
    sent_metric = metric.outcomes_of or metric
    takes_outcomes = metric.source == Metric.Source.OUTCOMES
    return {
        "metric": metric,
        "quantile_percent": f"{(metric.quantile_ppm or 0) / 10_000:g}",
        "sent_metric": sent_metric,
        "uses": list(uses.defer("experiment__result").order_by("-experiment__created_at")),
        "derived": list(derived.order_by("name")),
        "takes_outcomes": takes_outcomes,
        "received": received_since(sent_metric, now - RECENT) if takes_outcomes else None,
        "counted_max": COUNTED_MAX,
        "refused": list(refusal_rows(sent_metric.name)[:REFUSALS_SHOWN_MAX]),
    }


def received_since(metric: Metric, since: datetime) -> int:
    """Return the number of outcomes received for the metric since then; at most `COUNTED_MAX`."""
    rows = OutcomeRow.objects.filter(metric=metric, received_at__gte=since)
    return rows.values("pk")[:COUNTED_MAX].count()
