"""Which of a metric's outcomes belong to an exposure, asked of a warehouse; see
`apps.experiments.attribution`, whose counts these are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ibis
from django.conf import settings

from apps.experiments.attribution import Attribution, SentMetric, counted_since
from apps.experiments.models import Experiment
from apps.experiments.warehouse.units import Expr, Tables, as_number

Ask = Callable[[Expr], list[dict[str, Any]]]


def attributions(
    ask: Ask, tables: Tables, experiment: Experiment, metric: SentMetric
) -> Attribution:
    """Count the outcomes of one metric; an event that is there twice counts once."""
    (row,) = ask(_counts(tables, experiment, metric))
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
    # Some engines give a missing instant as 1970: whether the unit is known is asked first.
    known = rows.exposed_unit.notnull() & (rows.exposed_unit == rows.unit)
    before = known & (rows.occurred_at < rows.exposed_at - skew)
    after: Expr = known & ibis.literal(False)
    if metric.window_s is not None:
        until = rows.exposed_at + ibis.interval(seconds=metric.window_s)
        after = known & (rows.occurred_at >= until)
    # Whole seconds in some engines, with a fraction in others.
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
