"""Compute unit values from stored exposures, outcomes and measurements.

Ingestion inserts a `TouchedUnit` in its own transaction; all values of a touched unit are computed
again. Computing is idempotent, so a crash costs only the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q

from apps.experiments.columns import Column, columns_of, uses_of
from apps.experiments.models import Experiment, Metric
from apps.experiments.states import ExperimentState
from apps.experiments.tenant_scope import COUNTS_FOR

CHUNK = 20_000

# Rows locked by another fold are skipped; if it fails, they are taken later.
TAKE = """
    DELETE FROM experiments_touchedunit WHERE id IN (
        SELECT id FROM experiments_touchedunit ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
    ) RETURNING unit
"""
# Rows are locked in unit order, so that two folds cannot deadlock. Every join is a lookup by a
# whole key for each exposed unit: without statistics of a new experiment the planner would choose a
# nested loop over thousands of rows.
FOLD = """
    WITH exposed AS MATERIALIZED (
        SELECT kept.experiment_id, kept.unit, kept.at, kept.tenant, kept.also_tenants
        FROM experiments_exposurerow AS kept
        WHERE kept.experiment_id = %(experiment)s AND kept.unit = ANY(%(units)s)
        ORDER BY kept.unit FOR UPDATE
    ), computed AS MATERIALIZED (
        SELECT exposed.experiment_id, exposed.unit, summed.values
        FROM exposed
        LEFT JOIN LATERAL (
            SELECT requests, errors, cache_hits, latency_us FROM experiments_measuredunit AS one
            WHERE one.experiment_id = exposed.experiment_id AND one.unit = exposed.unit OFFSET 0
        ) AS measured ON TRUE
        CROSS JOIN LATERAL (
            SELECT {array} AS values FROM experiments_outcomerow AS outcome
            WHERE {joins} HAVING TRUE
        ) AS summed
    )
    UPDATE experiments_exposurerow AS kept SET values = computed.values
    FROM computed
    WHERE kept.experiment_id = %(experiment)s AND kept.unit = ANY(%(units)s)
        AND kept.unit = computed.unit AND kept.values IS DISTINCT FROM computed.values
"""
# An outcome that seems to precede its exposure by up to the tolerated clock skew counts. So does
# one that really precedes it by that little: it does so in every arm alike, which dilutes a
# difference and cannot create one.
COUNTS_FROM = "exposed.at - %(skew_s)s * interval '1 second'"
# The outcomes that can contribute to values of a unit of `exposed`.
JOINS = f"""outcome.unit = exposed.unit AND outcome.metric_id = ANY(%(metrics)s)
    AND outcome.occurred_at >= exposed.at - %(reach_s)s * interval '1 second'
    AND {COUNTS_FOR}"""
# Where statistics say that a table is empty, a scan per unit looks as cheap as a lookup. Without
# nested loops, values are joined to their rows by one hash join; lookups stay.
ALLOW_NESTED_LOOPS = "SELECT set_config('enable_nestloop', %s, true)"
# For the data plane's own measurements: numerator, and number of requests.
MEASURED = {
    Metric.Source.LATENCY: (
        "(measured.latency_us / 1000.0)",
        "(measured.requests - measured.errors - measured.cache_hits)",
    ),
    Metric.Source.ERRORS: ("measured.errors", "measured.requests"),
    Metric.Source.CACHE: ("measured.cache_hits", "measured.requests"),
}
AGGREGATES = {
    Metric.PerUnit.FIRST: "(array_agg(outcome.value ORDER BY outcome.occurred_at,"
    " outcome.event_id) FILTER (WHERE {where}))[1]",
    Metric.PerUnit.MEAN: "avg(outcome.value) FILTER (WHERE {where})",
    Metric.PerUnit.SUM: "sum(outcome.value) FILTER (WHERE {where})",
    Metric.PerUnit.MAX: "max(outcome.value) FILTER (WHERE {where})",
}


def fold_touched(limit: int = CHUNK) -> int:
    """Compute the values of up to `limit` touched units; return how many were taken."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(TAKE, [limit])
            taken = [unit for (unit,) in cursor.fetchall()]
        if taken:
            units = sorted(set(taken))
            for experiment in _unfrozen():
                fold(experiment, units)
    return len(taken)


def fold_all() -> None:
    """Fold until no unit is left that was touched before the call."""
    while fold_touched() == CHUNK:
        pass


def _unfrozen() -> Sequence[Experiment]:
    """Return the experiments whose result can still change."""
    live = Q(state__in=[ExperimentState.RUNNING, ExperimentState.PAUSED])
    ending = Q(state=ExperimentState.COMPLETED, refresh_due_at__isnull=False)
    return list(Experiment.objects.filter(live | ending).select_related("model").order_by("pk"))


def fold(experiment: Experiment, units: Sequence[str]) -> None:
    """Compute the values of exposed `units`. Runs in the caller's transaction."""
    columns = columns_of(experiment, uses_of(experiment))
    query = unit_values(columns, experiment.model.name, experiment.covariate_s)
    parameters = query.parameters | {"experiment": experiment.pk, "units": list(units)}
    with connection.cursor() as cursor:
        cursor.execute(ALLOW_NESTED_LOOPS, ["off"])
        cursor.execute(FOLD.format(array=query.array, joins=query.joins), parameters)
        cursor.execute(ALLOW_NESTED_LOOPS, ["on"])


@dataclass(frozen=True)
class UnitValues:
    """The SQL of unit values, in column order, with its parameters.

    `array` aggregates, per unit of `exposed` (columns `unit`, `at` and tenants), the rows of
    `outcome` that `joins` selects. Measurements of data planes are read from `measured`.
    """

    array: str
    joins: str
    parameters: dict[str, Any]


def unit_values(
    columns: Sequence[Column], model: str, covariate_s: int, until: datetime | None = None
) -> UnitValues:
    """Return the SQL of the values of units exposed to a split of `model`, for any exposure table.

    Outcomes from `until` on do not count; None: all count.
    """
    parameters: dict[str, Any] = {
        "model": model,
        "reach_s": covariate_s + settings.OUTCOME_CLOCK_SKEW_S,
        "skew_s": settings.OUTCOME_CLOCK_SKEW_S,
        "metrics": sorted({sent_as(column).pk for column in columns}),
    }
    parts = [_expression(column, place, parameters) for place, column in enumerate(columns)]
    joins = JOINS
    if until is not None:
        parameters["until"] = until
        joins += " AND outcome.occurred_at < %(until)s"
    return UnitValues(f"ARRAY[{', '.join(parts)}]::float8[]", joins, parameters)


def sent_as(column: Column) -> Metric:
    """Return the metric under whose name the column's outcomes are sent."""
    metric = column.metric
    if column.is_denominator and metric.divided_by is not None:
        return metric.divided_by
    return metric.outcomes_of or metric


def _expression(column: Column, place: int, parameters: dict[str, Any]) -> str:
    metric = column.metric
    if metric.source != Metric.Source.OUTCOMES:
        return _measured(column)
    parameters[f"metric_{place}"] = sent_as(column).pk
    where = f"outcome.metric_id = %(metric_{place})s"
    if column.is_before:
        where += f" AND outcome.occurred_at < {COUNTS_FROM}"
    else:
        where += f" AND outcome.occurred_at >= {COUNTS_FROM}"
        if metric.window_s is not None:
            parameters[f"window_{place}"] = metric.window_s
            until = f"exposed.at + %(window_{place})s * interval '1 second'"
            where += f" AND outcome.occurred_at < {until}"
    return AGGREGATES[rule_of(metric)].format(where=where)


def rule_of(metric: Metric) -> Metric.PerUnit:
    """Return how a unit's outcomes are combined into its value."""
    if metric.kind == Metric.Kind.RATIO:
        return Metric.PerUnit.SUM
    if metric.kind == Metric.Kind.PROPORTION and metric.per_unit != Metric.PerUnit.MAX:
        return Metric.PerUnit.FIRST
    return Metric.PerUnit(metric.per_unit)


def _measured(column: Column) -> str:
    total, count = MEASURED[Metric.Source(column.metric.source)]
    kind = column.metric.kind
    if kind == Metric.Kind.RATIO:
        return f"{count if column.is_denominator else total}::float8"
    if kind == Metric.Kind.PROPORTION:
        return f"CASE WHEN {count} > 0 THEN ({total} > 0)::int::float8 END"
    return f"{total}::float8 / nullif({count}, 0)"
