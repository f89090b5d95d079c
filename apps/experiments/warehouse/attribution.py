"""Counts a metric's outcomes by their relation to the exposure, in a warehouse.

The counts are those of `apps.experiments.attribution`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ibis
from django.conf import settings

from apps.experiments.attribution import Attribution, SentMetric, counted_since
from apps.experiments.models import Experiment
from apps.experiments.warehouse.units import Expr, Tables, as_number

Fetch = Callable[[Expr], list[dict[str, Any]]]


def attributions(
    fetch: Fetch, tables: Tables, experiment: Experiment, metric: SentMetric
) -> Attribution:
    """Count the outcomes of one metric; a duplicate event counts once."""
    (row,) = fetch(_counts(tables, experiment, metric))
    before = int(row["before"] or 0)
    return Attribution(
        in_time=int(row["in_time"] or 0),
        before=before,
        before_mean_s=round(float(row["lead_s"]) / before) if before else None,
        after_window=int(row["after_window"] or 0),
        unknown_units=int(row["unknown_units"] or 0),
    )


def _counts(tables: Tables, experiment: Experiment, metric: SentMetric) -> Expr:
    exposed = tables.exposures.filter(tables.exposures.experiment == experiment.name)
    exposed = exposed.select(exposed_unit=exposed.unit, exposed_at=exposed.at)
    sent = _once(tables.outcomes, metric)
    sent = sent.filter(sent.occurred_at >= ibis.literal(counted_since(experiment)))
    rows = sent.left_join(exposed, sent.unit == exposed.exposed_unit)
    skew = ibis.interval(seconds=settings.OUTCOME_CLOCK_SKEW_S)
    # Some engines return a missing timestamp as 1970, so that the unit is checked first.
    known = rows.exposed_unit.notnull() & (rows.exposed_unit == rows.unit)
    before = known & (rows.occurred_at < rows.exposed_at - skew)
    after: Expr = known & ibis.literal(False)
    if metric.window_s is not None:
        until = rows.exposed_at + ibis.interval(seconds=metric.window_s)
        after = known & (rows.occurred_at >= until)
    # Some engines return whole seconds, others fractions.
    exposed_s, occurred_s = (
        at.epoch_seconds().cast("float64") for at in (rows.exposed_at, rows.occurred_at)
    )
    return rows.aggregate(
        in_time=as_number(known & ~before & ~after).sum(),
        before=as_number(before).sum(),
        lead_s=before.ifelse(exposed_s - occurred_s, 0.0).sum(),
        after_window=as_number(after).sum(),
        unknown_units=as_number(~known & (rows.unit != "")).sum(),
    )


def _once(outcomes: Expr, metric: SentMetric) -> Expr:
    sent = outcomes.filter(outcomes.metric.isin(list(metric.names)))
    order = ibis.row_number().over(
        ibis.window(group_by="event_id", order_by=[sent.occurred_at, sent.value, sent.unit])
    )
    sent = sent.mutate(_copy=order)
    return sent.filter(sent._copy == 0).select("unit", "occurred_at")
