"""From rows to a result: one SQL aggregate per variant, then the statistics on those few numbers.

What counts, per unit, since the unit is what was randomised:

* a unit that met two variants counts in none; it is shown as crossed over;
* an outcome counts from the unit's exposure on, never one from before it;
* of a mean metric a unit's value is the mean of its outcomes; of a proportion it is the first one,
  so that a value once counted never changes under somebody who looks again;
* a unit without an outcome is waiting: shown, and in no mean. A proportion therefore needs its
  zeros sent as well as its ones.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import DataError, connection, transaction

from apps.experiments.models import Experiment, Metric, RefusedOutcomes, Variant
from apps.experiments.states import ExperimentState
from apps.experiments.stats.moments import Moments
from apps.experiments.stats.results import ArmSummary, analyse

logger = logging.getLogger(__name__)

SERIES_POINTS = 60

COUNT_UNITS = """
    SELECT variant_name,
        count(*) FILTER (WHERE NOT crossed_over),
        count(*) FILTER (WHERE crossed_over)
    FROM experiments_exposurerow WHERE experiment_id = %s GROUP BY variant_name
"""
# regr_sxx(y, y) is Σ(y − mean)² by Youngs and Cramer: no sum of squares cancels.
SUM_OUTCOMES = """
    WITH per_unit AS (
        SELECT exposed.variant_name,
            CASE WHEN %(is_proportion)s
                THEN (array_agg(outcome.value ORDER BY outcome.occurred_at, outcome.event_id))[1]
                ELSE avg(outcome.value) END AS y
        FROM experiments_exposurerow AS exposed
        JOIN experiments_outcomerow AS outcome
            ON outcome.metric_id = %(metric)s
            AND outcome.unit = exposed.unit
            AND outcome.occurred_at >= exposed.at
        WHERE exposed.experiment_id = %(experiment)s AND NOT exposed.crossed_over
        GROUP BY exposed.variant_name, exposed.unit
    )
    SELECT variant_name, count(*), avg(y), regr_sxx(y, y), sum(y)
    FROM per_unit GROUP BY variant_name
"""
SERIES = """
    SELECT variant_name,
        least(width_bucket(extract(epoch FROM at)::float8, %(low)s, %(high)s, %(points)s),
            %(points)s) AS point,
        count(*)
    FROM experiments_exposurerow
    WHERE experiment_id = %(experiment)s AND NOT crossed_over
    GROUP BY variant_name, point ORDER BY point
"""


@dataclass(frozen=True)
class VariantData:
    """What was seen of a variant: units that met it, and one value per unit with an outcome."""

    exposed: int = 0
    crossed_over: int = 0
    moments: Moments = field(default_factory=Moments)
    # The sum of the units' values: the number of events of a proportion.
    total: float = 0.0


@dataclass(frozen=True)
class Computed:
    """A result, or why there is none now; then the last good one stays."""

    result: dict[str, Any] | None
    error: str = ""

    def changes(self, now: datetime) -> dict[str, Any]:
        """Return the experiment's columns to write."""
        if self.result is None:
            return {"refresh_error": self.error}
        return {"result": self.result, "refreshed_at": now, "refresh_error": ""}


def compute_result(experiment: Experiment, now: datetime, *, is_final: bool = False) -> Computed:
    """Analyse what was seen until now. Errors of the data or of the statistics are in the answer.

    Raises django.db.OperationalError when the database goes away.
    """
    try:
        with transaction.atomic():
            variants = list(experiment.variants.select_related("version"))
            data = collect(experiment)
            result = _analyse(experiment, variants, data, is_final)
            result["quality"] = _quality(experiment, variants, data)
            result["exposures"] = exposure_series(experiment, now)
    except (DataError, ValueError, ArithmeticError) as error:
        logger.exception("experiment.analysis_failed %s", experiment.name)
        return Computed(None, f"{type(error).__name__}: {error}")
    return Computed(result)


def refresh_result(experiment: Experiment, now: datetime) -> None:
    """Store a new result of a running experiment; one that ended meanwhile keeps its own."""
    computed = compute_result(experiment, now)
    Experiment.objects.filter(pk=experiment.pk, state=ExperimentState.RUNNING).update(
        **computed.changes(now)
    )


def collect(experiment: Experiment) -> dict[str, VariantData]:
    """Return the sufficient statistics by variant name, also of names the experiment lacks."""
    data: dict[str, VariantData] = {}
    with connection.cursor() as cursor:
        cursor.execute(COUNT_UNITS, [experiment.pk])
        counted = cursor.fetchall()
        cursor.execute(
            SUM_OUTCOMES,
            {
                "experiment": experiment.pk,
                "metric": experiment.metric.pk,
                "is_proportion": experiment.metric.kind == Metric.Kind.PROPORTION,
            },
        )
        sums = {name: (Moments(n, mean, m2), total) for name, n, mean, m2, total in cursor}
    for name, exposed, crossed_over in counted:
        moments, total = sums.get(name, (Moments(), 0.0))
        data[name] = VariantData(exposed, crossed_over, moments, total)
    return data


def exposure_series(experiment: Experiment, now: datetime) -> dict[str, Any]:
    """Return new units per variant in at most 60 equal spans from the start until now.

    `at_ms` are the ends of the spans, `units` is {variant: counts}, one per span.
    """
    start = experiment.started_at
    if start is None or now <= start:
        return {"at_ms": [], "units": {}}
    low, high = start.timestamp(), now.timestamp()
    parameters: dict[str, Any] = {
        "experiment": experiment.pk,
        "low": low,
        "high": high,
        "points": SERIES_POINTS,
    }
    units: dict[str, list[int]] = {}
    with connection.cursor() as cursor:
        cursor.execute(SERIES, parameters)
        for name, point, count in cursor:
            # Point 0 holds what an instance with a slow clock dated before the start.
            units.setdefault(name, [0] * SERIES_POINTS)[max(point, 1) - 1] += count
    step = (high - low) / SERIES_POINTS
    ends = [round((low + step * (i + 1)) * 1_000) for i in range(SERIES_POINTS)]
    return {"at_ms": ends, "units": units}


def _analyse(
    experiment: Experiment,
    variants: Sequence[Variant],
    data: dict[str, VariantData],
    is_final: bool,
) -> dict[str, Any]:
    analysis = analyse(
        [_arm(experiment, variant, data.get(variant.name, VariantData())) for variant in variants],
        kind="proportion" if experiment.metric.kind == Metric.Kind.PROPORTION else "mean",
        direction=(
            "decrease" if experiment.metric.direction == Metric.Direction.DECREASE else "increase"
        ),
        alpha=experiment.alpha_ppm / 1_000_000,
        planned_units=experiment.planned_units,
        is_final=is_final,
    )
    return analysis.to_json()


def _arm(experiment: Experiment, variant: Variant, seen: VariantData) -> ArmSummary:
    if experiment.metric.kind == Metric.Kind.PROPORTION:
        return ArmSummary.of_events(
            variant.name,
            variant.weight_bp,
            seen.moments.n,
            round(seen.total),
            is_control=variant.is_control,
            exposed_n=seen.exposed,
        )
    return ArmSummary.of_moments(
        variant.name,
        variant.weight_bp,
        seen.moments,
        is_control=variant.is_control,
        exposed_n=seen.exposed,
    )


def _quality(
    experiment: Experiment, variants: Sequence[Variant], data: dict[str, VariantData]
) -> dict[str, Any]:
    """Return what a reader must know before believing the numbers, as plain counts."""
    names = {variant.name for variant in variants}
    refused = RefusedOutcomes.objects.filter(metric_name=experiment.metric.name)
    return {
        "exposed": sum(seen.exposed for seen in data.values()),
        "crossed_over": sum(seen.crossed_over for seen in data.values()),
        "waiting": sum(seen.exposed - seen.moments.n for seen in data.values()),
        "unknown_variants": {
            name: seen.exposed for name, seen in sorted(data.items()) if name not in names
        },
        "refused_outcomes": {row.reason: row.count for row in refused.order_by("reason")},
    }
