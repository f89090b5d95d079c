"""Sufficient statistics of an experiment from PostgreSQL: a few scans over its units' values.

What counts, per unit, since the unit is what was randomised:

* a unit that met two variants, or whose bucket moved when weights changed (`phases`), is in no arm;
* with an attribution window a unit counts once its window is over, and not before;
* a unit without an outcome waits and is in no mean, or is 0 where the metric says so;
* a value counts as the metric's cap at most.

Means and co-moments are PostgreSQL's own (Youngs and Cramer), so that no sum of squares cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, cast

from apps.experiments.columns import MetricColumns, metric_columns, uses_of
from apps.experiments.models import Experiment, Metric, Variant
from apps.experiments.phases import WeightPhase, phases_of
from apps.experiments.scan import Scan, ask, before, values
from apps.experiments.spreads import distributions, order_statistics
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricKind,
    MetricSpec,
    Phase,
    Role,
)
from contract.routing import HOLDOUT

LEVELS_MAX = 50
OTHER_LEVELS = "(other)"
TENANT = "tenant"

# The moments of each metric, in order, by (variant, level).
Levels = dict[tuple[str, str], list[Comoments]]


@dataclass(frozen=True)
class Gathered:
    """What a result is made of: the statistics, and counts of who is in none of them."""

    data: ExperimentData
    crossed_over: int = 0
    moved: int = 0
    strangers: dict[str, int] = field(default_factory=dict)
    holdout_units: int = 0
    holdout: dict[str, Comoments] = field(default_factory=dict)


def gather(experiment: Experiment, now: datetime) -> Gathered:
    """Return what was seen of the experiment until now."""
    variants = list(experiment.variants.order_by("position"))
    uses = uses_of(experiment)
    scan = Scan(
        experiment,
        tuple(variant.name for variant in variants),
        tuple(metric_columns(experiment, uses)),
        tuple(_phases(experiment, variants)),
        now,
    )
    scan = _with_missing(scan)
    counted = _count(scan)
    levels = {name: _moments(scan, name) for name in experiment.dimensions}
    whole = _whole(next(iter(levels.values()))) if levels else _moments(scan)
    metrics = _metrics_data(scan, whole, levels)
    data = ExperimentData(
        arms=tuple(ArmSpec(v.name, v.weight_bp, v.is_control) for v in variants),
        exposed={name: counted.exposed.get(name, 0) for name in scan.names},
        phases=tuple(
            Phase({name: counted.by_phase.get((i, name), 0) for name in scan.names}, phase.shares)
            for i, phase in enumerate(scan.phases)
        ),
        metrics=metrics,
    )
    held = {
        use.metric.name: whole[HOLDOUT, ""][place]
        for place, use in enumerate(uses)
        if (HOLDOUT, "") in whole
    }
    return Gathered(
        data,
        counted.crossed_over,
        counted.moved,
        {n: c for n, c in counted.exposed.items() if n not in {*scan.names, HOLDOUT}},
        counted.exposed.get(HOLDOUT, 0),
        held,
    )


def _phases(experiment: Experiment, variants: Sequence[Variant]) -> list[WeightPhase]:
    changes = list(experiment.weights.order_by("at", "id").values_list("at", "weights_bp"))
    if not changes:
        start = experiment.started_at or experiment.created_at
        changes = [(start, {variant.name: variant.weight_bp for variant in variants})]
    return phases_of([variant.name for variant in variants], changes)


# --- who is in which arm -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    exposed: dict[str, int]
    by_phase: dict[tuple[int, str], int]
    crossed_over: int
    moved: int


def _count(scan: Scan) -> _Counted:
    starts = [phase.at for phase in scan.phases[1:]]
    sql = f"""
        SELECT variant_name, width_bucket(at, %(starts)s::timestamptz[]) AS phase,
            count(*) FILTER (WHERE NOT crossed_over AND NOT {scan.moved}),
            count(*) FILTER (WHERE crossed_over),
            count(*) FILTER (WHERE NOT crossed_over AND {scan.moved})
        FROM experiments_exposurerow WHERE experiment_id = %(experiment)s
        GROUP BY variant_name, phase
    """  # noqa: S608 (conditions of ours)
    exposed: dict[str, int] = {}
    by_phase: dict[tuple[int, str], int] = {}
    crossed = moved = 0
    for name, phase, n, crossed_n, moved_n in ask(sql, scan.parameters | {"starts": starts}):
        exposed[name] = exposed.get(name, 0) + n
        by_phase[phase, name] = n
        crossed += crossed_n
        moved += moved_n
    return _Counted({n: c for n, c in exposed.items() if c}, by_phase, crossed, moved)


# --- moments -------------------------------------------------------------------------------------


def _with_missing(scan: Scan) -> Scan:
    """Look up what stands in for a covariate that a unit has not."""
    places = [p for metric in scan.metrics if metric.has_covariate for p in before(metric)]
    if not places:
        return scan
    sql = f"""
        SELECT {", ".join(f"avg(values[{place}])" for place in places)}
        FROM experiments_exposurerow WHERE experiment_id = %(experiment)s AND NOT crossed_over
    """  # noqa: S608 (numbers of ours)
    means = ask(sql, scan.parameters)[0]
    missing = {place: mean or 0.0 for place, mean in zip(places, means, strict=True)}
    for metric in scan.metrics:
        if metric.metric.per_unit == Metric.PerUnit.SUM and metric.metric.kind == Metric.Kind.MEAN:
            missing |= dict.fromkeys(before(metric), 0.0)
    return Scan(scan.experiment, scan.names, scan.metrics, scan.phases, scan.now, missing)


def _level(dimension: str) -> tuple[str, str]:
    """Return the SQL of a unit's level of a dimension, and the parameter it takes."""
    if dimension == TENANT:
        return "coalesce(nullif(tenant, ''), '(none)')", ""
    return "coalesce(attributes ->> %(dimension)s, '(none)')", dimension


def _moments(scan: Scan, dimension: str = "") -> Levels:
    """Return the co-moments of each metric by (variant, level); the level is empty without one."""
    asked = [values(scan, metric) for metric in scan.metrics]
    names = [[f"m{i}_{j}" for j in range(len(parts))] for i, parts in enumerate(asked)]
    picked = ", ".join(
        f"{sql} AS {name}"
        for parts, row in zip(asked, names, strict=True)
        for sql, name in zip(parts, row, strict=True)
    )
    level, parameter = _level(dimension) if dimension else ("''", "")
    sums = ", ".join(_sums(row) for row in names)
    sql = f"""
        WITH seen AS (
            SELECT variant_name, {level} AS level, {picked}
            FROM experiments_exposurerow
            WHERE {scan.kept}
        )
        SELECT variant_name, level, count(*), {sums} FROM seen GROUP BY variant_name, level
    """  # noqa: S608 (expressions of ours)
    rows = ask(sql, scan.parameters | {"dimension": parameter})
    if dimension:
        rows = _top_levels(rows)
    found: Levels = {}
    for name, of_level, _, *numbers in rows:
        made, start = [], 0
        for row in names:
            width = 1 + len(row) + len(row) * (len(row) + 1) // 2
            made.append(_comoments(numbers[start : start + width], len(row)))
            start += width
        known = found.get((name, of_level))
        if known is not None:
            made = [a.merge(b) for a, b in zip(known, made, strict=True)]
        found[name, of_level] = made
    return found


def _sums(row: Sequence[str]) -> str:
    """Return the SQL of a metric's count, means and products of deviations, as in `Comoments`.

    Aggregates of the same arguments share one state in PostgreSQL, which is what a row costs: so
    each pair of values is summed once, and means and squares come out of the pairs.
    """
    if len(row) == 1:
        (value,) = row
        return f"count({value}), avg({value}), var_pop({value}) * count({value})"
    pairs = [f"{a}, {b}" for a, b in pairwise(row)]
    means = [f"regr_avgy({pair})" for pair in pairs] + [f"regr_avgx({pairs[-1]})"]
    squares = [f"regr_syy({pair})" for pair in pairs] + [f"regr_sxx({pairs[-1]})"]
    products = []
    for i, a in enumerate(row):
        products += [squares[i], *(f"regr_sxy({a}, {b})" for b in row[i + 1 :])]
    return ", ".join([f"regr_count({pairs[0]})", *means, *products])


def _comoments(numbers: Sequence[Any], k: int) -> Comoments:
    n = int(numbers[0])
    if n == 0:
        return Comoments.empty(k)
    return Comoments(n, tuple(numbers[1 : 1 + k]), tuple(numbers[1 + k :]))


def _top_levels(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Put the levels with the fewest units together, so that a page can show the rest."""
    units: dict[str, int] = {}
    for _, level, n, *_ in rows:
        units[level] = units.get(level, 0) + n
    top = set(sorted(units, key=lambda level: (-units[level], level))[:LEVELS_MAX])
    return [
        (name, level if level in top else OTHER_LEVELS, n, *rest) for name, level, n, *rest in rows
    ]


def _whole(levels: Levels) -> Levels:
    """Return the moments of all levels together, under the empty level."""
    found: Levels = {}
    for (name, _), row in sorted(levels.items()):
        known = found.get((name, ""))
        merged = [a.merge(b) for a, b in zip(known, row, strict=True)] if known else row
        found[name, ""] = merged
    return found


# --- metrics -------------------------------------------------------------------------------


def _spec(columns: MetricColumns) -> MetricSpec:
    metric = columns.metric
    return MetricSpec(
        name=metric.name,
        role=cast(Role, columns.use.role),
        kind=cast(MetricKind, str(metric.kind)),
        is_increase_better=metric.direction == Metric.Direction.INCREASE,
        margin=columns.use.margin,
        quantile=metric.quantile_ppm / 1_000_000 if metric.quantile_ppm else None,
        has_covariate=columns.has_covariate,
        mann_whitney=columns.use.mann_whitney,
    )


def _metrics_data(scan: Scan, whole: Levels, levels: dict[str, Levels]) -> tuple[MetricData, ...]:
    arms = [name for name in scan.names if (name, "") in whole]
    moments = {
        place: {name: whole[name, ""][place] for name in arms} for place in range(len(scan.metrics))
    }
    orders = order_statistics(scan, moments)
    edges, counts = distributions(scan, moments)
    strata = levels.get(scan.experiment.stratify_by, {})
    return tuple(
        MetricData(
            _spec(columns),
            {
                name: ArmData(
                    comoments=found,
                    order=orders.get((place, name)),
                    counts=counts.get((place, name), ()),
                    strata={lv: row[place] for (arm, lv), row in strata.items() if arm == name},
                )
                for name, found in moments[place].items()
            },
            edges.get(place, ()),
            {dimension: _by_level(scan, rows, place) for dimension, rows in levels.items()},
        )
        for place, columns in enumerate(scan.metrics)
    )


def _by_level(scan: Scan, rows: Levels, place: int) -> dict[str, dict[str, Comoments]]:
    """Return one metric's moments by level, in the order of their names, and arm."""
    found: dict[str, dict[str, Comoments]] = {}
    for (arm, level), row in sorted(rows.items(), key=lambda item: item[0][1]):
        if arm in scan.names:
            found.setdefault(level, {})[arm] = row[place]
    return found
