"""Compute and store results of experiments; the final one is frozen.

A live experiment is analysed on a schedule, a large one less often. After its end the final result
is computed once the exposures and outcomes in flight have had time to arrive.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from django.db import DataError, connection, transaction

from apps.experiments.attribution import compute_attribution
from apps.experiments.backlog import is_ingested, read_result_backlog
from apps.experiments.columns import uses_of
from apps.experiments.models import Experiment, RefusedOutcomes, ResultPoint
from apps.experiments.services import enqueue_result_events
from apps.experiments.sources import Source
from apps.experiments.states import ExperimentState
from apps.experiments.stats.data import ExperimentData
from apps.experiments.stats.report import make_report
from apps.experiments.sufficient_statistics import ExperimentStatistics, collect_statistics
from apps.experiments.unit_values import fold_all
from apps.experiments.warehouse import configured_source
from apps.lib.errors import Unavailable

logger = logging.getLogger(__name__)

SERIES_POINTS = 60
# Maximum number of stored points of a result over time.
POINTS_MAX = 300
REFRESH_EVERY = timedelta(seconds=5)
# A refresh takes at most this share of a worker's time.
REFRESH_SHARE = 0.1
# Data planes send within 1 to 2 seconds, and the ingester is as fast.
LATE_ARRIVALS = timedelta(seconds=5)

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
class Computation:
    """A result, or the error of the analysis; then the last good result stays."""

    result: dict[str, Any] | None
    error: str = ""

    def changes(self, now: datetime) -> dict[str, Any]:
        """Return the experiment's columns to write."""
        if self.result is None:
            return {"refresh_error": self.error}
        return {"result": self.result, "refreshed_at": now, "refresh_error": ""}


def compute_result(
    experiment: Experiment,
    now: datetime,
    *,
    is_final: bool = False,
    source: Source | None = None,
) -> Computation:
    """Analyse the data up to now. Errors of data or statistics are part of the return value.

    `source` None: the installation's own source. Raises django.db.OperationalError when the
    database goes away.
    """
    try:
        with _consistent_reads():
            source = source or configured_source()
            statistics = collect_statistics(experiment, now, source)
            report = make_report(
                statistics.data,
                alpha=experiment.alpha_ppm / 1_000_000,
                planned_units=experiment.planned_units,
                is_final=is_final,
            )
            result = report.to_json()
            result["quality"] = _quality(experiment, statistics)
            result["phases"] = _phases(statistics.data)
            result["attribution"] = compute_attribution(experiment, now, source, is_final=is_final)
            result["exposures"] = exposure_series(experiment, now)
            result["holdout"] = _holdout(statistics)
            result["backlog"] = read_result_backlog()
    except (DataError, ValueError, ArithmeticError, Unavailable) as error:
        logger.exception("experiment.analysis_failed %s", experiment.name)
        return Computation(None, f"{type(error).__name__}: {error}")
    return Computation(result)


@contextmanager
def _consistent_reads() -> Iterator[None]:
    """Let all scans read the same snapshot of the database, so that counts and means agree.

    Inside an outer transaction, as in tests, the isolation level stays as it is.
    """
    is_outermost = not connection.in_atomic_block
    with transaction.atomic():
        if is_outermost:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def refresh_result(experiment: Experiment, now: datetime) -> None:
    """Store a new result of a live experiment; one that has ended keeps its result."""
    started = monotonic()
    fold_all()
    computation = compute_result(experiment, now)
    pause = max(REFRESH_EVERY, timedelta(seconds=(monotonic() - started) / REFRESH_SHARE))
    live = [ExperimentState.RUNNING, ExperimentState.PAUSED]
    _store(experiment, computation, now, live, due=now + pause)


def finalise_result(experiment: Experiment, now: datetime) -> bool:
    """Compute and freeze the final result of an ended experiment; return whether it was stored."""
    if experiment.ended_at is None or now < (until := experiment.ended_at + LATE_ARRIVALS):
        return False
    if not is_ingested(until, now):
        return False
    fold_all()
    computation = compute_result(experiment, now, is_final=True)
    return _store(experiment, computation, now, [ExperimentState.COMPLETED], due=None)


@transaction.atomic
def _store(
    experiment: Experiment,
    computation: Computation,
    now: datetime,
    states: list[ExperimentState],
    due: datetime | None,
) -> bool:
    """Store the result and its new events unless the experiment left `states` or is frozen."""
    locked = Experiment.objects.select_for_update().filter(pk=experiment.pk, state__in=states)
    if due is None:
        locked = locked.filter(refresh_due_at__isnull=False)
    row = locked.first()
    if row is None:
        return False
    changes = computation.changes(now) | {"refresh_due_at": due}
    if computation.result is not None:
        changes["result"] = enqueue_result_events(
            experiment=row, result=computation.result, now=now
        )
        if due is None:
            changes["result"]["is_frozen"] = True
        _add_point(row, computation.result, now)
    Experiment.objects.filter(pk=row.pk).update(**changes)
    return True


def _add_point(experiment: Experiment, result: dict[str, Any], now: datetime) -> None:
    """Store a summary of the result; beyond `POINTS_MAX`, delete every other older point."""
    numbers = {
        metric["name"]: {
            comparison["arm"]: _point_of(metric, comparison) for comparison in metric["comparisons"]
        }
        for metric in result["metrics"]
    }
    ResultPoint.objects.create(experiment=experiment, at=now, numbers=numbers)
    ids = list(experiment.points.order_by("at", "id").values_list("pk", flat=True))
    if len(ids) > POINTS_MAX:
        # The first and the last point stay.
        ResultPoint.objects.filter(pk__in=ids[1:-1:2]).delete()


def _point_of(metric: dict[str, Any], comparison: dict[str, Any]) -> list[Any]:
    n = next(arm["n"] for arm in metric["arms"] if arm["name"] == comparison["arm"])
    reading = comparison["sequential"]
    return [comparison["difference"], reading["low"], reading["high"], n]


def exposure_series(experiment: Experiment, now: datetime) -> dict[str, Any]:
    """Return new units per variant in at most 60 equal time spans from the start until now.

    `at_ms` are the ends of the spans in Unix milliseconds, `units` is {variant: count per span}.
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
            # Point 0 holds exposures that an instance with a slow clock dated before the start.
            units.setdefault(name, [0] * SERIES_POINTS)[max(point, 1) - 1] += count
    step = (high - low) / SERIES_POINTS
    ends = [round((low + step * (i + 1)) * 1_000) for i in range(SERIES_POINTS)]
    return {"at_ms": ends, "units": units}


def _quality(experiment: Experiment, statistics: ExperimentStatistics) -> dict[str, Any]:
    """Return counts that describe the quality of the data."""
    exposed = sum(statistics.data.exposed.values())
    counted = sum(arm.comoments.n for arm in statistics.data.metrics[0].arms.values())
    names = {use.metric.name for use in uses_of(experiment)}
    refused = RefusedOutcomes.objects.filter(metric_name__in=names)
    counts: dict[str, int] = {}
    for row in refused.order_by("reason"):
        counts[row.reason] = counts.get(row.reason, 0) + row.count
    return {
        "exposed": exposed,
        "crossed_over": statistics.crossed_over,
        "moved": statistics.moved,
        "waiting": exposed - counted,
        "unknown_variants": dict(sorted(statistics.unknown_variants.items())),
        "refused_outcomes": counts,
        "holdout": statistics.holdout_units,
    }


def _phases(data: ExperimentData) -> list[dict[str, Any]]:
    """Return the weight phases in order: start, weights, and each arm's units."""
    return [
        {
            "at": phase.at.isoformat() if phase.at else None,
            "weights_bp": phase.weights_bp,
            "units": phase.units,
        }
        for phase in data.phases
    ]


def _holdout(statistics: ExperimentStatistics) -> dict[str, Any]:
    """Return number and means of held-out units; they are in no arm and no comparison."""
    means: dict[str, float | None] = {}
    for metric in statistics.data.metrics:
        moments = statistics.holdout.get(metric.spec.name)
        if moments is None or moments.n == 0 or metric.spec.kind == "quantile":
            means[metric.spec.name] = None
        elif metric.spec.kind == "ratio":
            means[metric.spec.name] = (
                moments.means[0] / moments.means[1] if moments.means[1] else None
            )
        else:
            means[metric.spec.name] = moments.means[0]
    return {"units": statistics.holdout_units, "means": means}
