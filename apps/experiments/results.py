"""From what was seen to a result: collect statistics, judge, store; the last one is frozen.

While an experiment is live its result is made again on schedule, large ones less often. Once it has
ended, the final result is made when what was under way has had time to arrive.
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

from apps.experiments.attribution import attribution
from apps.experiments.backlog import backlog_of_results, is_taken_in
from apps.experiments.columns import uses_of
from apps.experiments.models import Experiment, RefusedOutcomes, ResultPoint
from apps.experiments.services import tell_result
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
# The course of a result over time keeps at most so many points.
POINTS_MAX = 300
REFRESH_EVERY = timedelta(seconds=5)
# A refresh takes at most this share of a worker's time.
REFRESH_SHARE = 0.1
# Data planes send what they saw within a second or two, and the ingester takes it in as fast.
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
class Computed:
    """A result, or why there is none now; then the last good one stays."""

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
) -> Computed:
    """Analyse what was seen until now. Errors of the data or of the statistics are in the answer.

    The installation's own source is asked unless another is given. Raises
    django.db.OperationalError when the database goes away.
    """
    try:
        with _one_instant():
            source = source or configured_source()
            found = collect_statistics(experiment, now, source)
            report = make_report(
                found.data,
                alpha=experiment.alpha_ppm / 1_000_000,
                planned_units=experiment.planned_units,
                is_final=is_final,
            )
            result = report.to_json()
            result["quality"] = _quality(experiment, found)
            result["phases"] = _phases(found.data)
            result["attribution"] = attribution(experiment, now, source, is_final=is_final)
            result["exposures"] = exposure_series(experiment, now)
            result["holdout"] = _holdout(found)
            result["backlog"] = backlog_of_results()
    except (DataError, ValueError, ArithmeticError, Unavailable) as error:
        logger.exception("experiment.analysis_failed %s", experiment.name)
        return Computed(None, f"{type(error).__name__}: {error}")
    return Computed(result)


@contextmanager
def _one_instant() -> Iterator[None]:
    """Let all scans see the rows of the same instant, or counts and means would not agree.

    Within somebody's transaction, as in tests, its isolation stays as it is.
    """
    is_ours = not connection.in_atomic_block
    with transaction.atomic():
        if is_ours:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def refresh_result(experiment: Experiment, now: datetime) -> None:
    """Store a new result of a live experiment; one that ended meanwhile keeps its own."""
    started = monotonic()
    fold_all()
    computed = compute_result(experiment, now)
    pause = max(REFRESH_EVERY, timedelta(seconds=(monotonic() - started) / REFRESH_SHARE))
    live = [ExperimentState.RUNNING, ExperimentState.PAUSED]
    _store(experiment, computed, now, live, due=now + pause)


def finalise_result(experiment: Experiment, now: datetime) -> bool:
    """Make and freeze the final result of an experiment that ended; return whether it was time."""
    if experiment.ended_at is None or now < (until := experiment.ended_at + LATE_ARRIVALS):
        return False
    if not is_taken_in(until, now):
        return False
    fold_all()
    computed = compute_result(experiment, now, is_final=True)
    return _store(experiment, computed, now, [ExperimentState.COMPLETED], due=None)


@transaction.atomic
def _store(
    experiment: Experiment,
    computed: Computed,
    now: datetime,
    states: list[ExperimentState],
    due: datetime | None,
) -> bool:
    """Write the result unless the experiment has left `states` or is frozen; tell what is news."""
    locked = Experiment.objects.select_for_update().filter(pk=experiment.pk, state__in=states)
    if due is None:
        locked = locked.filter(refresh_due_at__isnull=False)
    row = locked.first()
    if row is None:
        return False
    changes = computed.changes(now) | {"refresh_due_at": due}
    if computed.result is not None:
        changes["result"] = tell_result(experiment=row, result=computed.result, now=now)
        if due is None:
            changes["result"]["is_frozen"] = True
        _add_point(row, computed.result, now)
    Experiment.objects.filter(pk=row.pk).update(**changes)
    return True


def _add_point(experiment: Experiment, result: dict[str, Any], now: datetime) -> None:
    """Keep what this result says, short; every other of too many older points is dropped."""
    numbers = {
        metric["name"]: {
            compared["arm"]: _point_of(metric, compared) for compared in metric["comparisons"]
        }
        for metric in result["metrics"]
    }
    ResultPoint.objects.create(experiment=experiment, at=now, numbers=numbers)
    ids = list(experiment.points.order_by("at", "id").values_list("pk", flat=True))
    if len(ids) > POINTS_MAX:
        # The first and the last stay.
        ResultPoint.objects.filter(pk__in=ids[1:-1:2]).delete()


def _point_of(metric: dict[str, Any], compared: dict[str, Any]) -> list[Any]:
    n = next(arm["n"] for arm in metric["arms"] if arm["name"] == compared["arm"])
    reading = compared["sequential"]
    return [compared["difference"], reading["low"], reading["high"], n]


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


def _quality(experiment: Experiment, found: ExperimentStatistics) -> dict[str, Any]:
    """Return what a reader must know before believing the numbers, as plain counts."""
    exposed = sum(found.data.exposed.values())
    names = {use.metric.name for use in uses_of(experiment)}
    refused = RefusedOutcomes.objects.filter(metric_name__in=names)
    counts: dict[str, int] = {}
    for row in refused.order_by("reason"):
        counts[row.reason] = counts.get(row.reason, 0) + row.count
    return {
        "exposed": exposed,
        "crossed_over": found.crossed_over,
        "moved": found.moved,
        "waiting": exposed - sum(arm.comoments.n for arm in found.data.metrics[0].arms.values()),
        "unknown_variants": dict(sorted(found.unknown_variants.items())),
        "refused_outcomes": counts,
        "holdout": found.holdout_units,
    }


def _phases(data: ExperimentData) -> list[dict[str, Any]]:
    """Return the spans with the same weights, in order: when, which, and each arm's units."""
    return [
        {
            "at": phase.at.isoformat() if phase.at else None,
            "weights_bp": phase.weights_bp,
            "units": phase.units,
        }
        for phase in data.phases
    ]


def _holdout(found: ExperimentStatistics) -> dict[str, Any]:
    """Return what the units that are held out have, beside the arms and in no comparison."""
    means: dict[str, float | None] = {}
    for metric in found.data.metrics:
        seen = found.holdout.get(metric.spec.name)
        if seen is None or seen.n == 0 or metric.spec.kind == "quantile":
            means[metric.spec.name] = None
        elif metric.spec.kind == "ratio":
            means[metric.spec.name] = seen.means[0] / seen.means[1] if seen.means[1] else None
        else:
            means[metric.spec.name] = seen.means[0]
    return {"units": found.holdout_units, "means": means}
