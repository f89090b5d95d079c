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
from typing import Any, cast

from django.db import connection

from apps.experiments.columns import MetricColumns, metric_columns, uses_of
from apps.experiments.models import Experiment, Metric, Variant
from apps.experiments.phases import WeightPhase, phases_of
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricKind,
    MetricSpec,
    OrderStatistics,
    Phase,
    Role,
)
from apps.experiments.stats.quantiles import ranks_of
from contract.routing import HOLDOUT

BINS = 40
# Charts of more units than this are drawn from as many of them.
DRAWN_MAX = 200_000
LEVELS_MAX = 50
OTHER_LEVELS = "(other)"
TENANT = "tenant"


@dataclass(frozen=True)
class Gathered:
    """What a result is made of: the statistics, and counts of who is in none of them."""

    data: ExperimentData
    crossed_over: int = 0
    moved: int = 0
    strangers: dict[str, int] = field(default_factory=dict)
    holdout_units: int = 0
    holdout: dict[str, Comoments] = field(default_factory=dict)


@dataclass(frozen=True)
class _Scan:
    """One experiment's question to its units. `kept` is the condition that a unit is in an arm."""

    experiment: Experiment
    names: tuple[str, ...]
    metrics: tuple[MetricColumns, ...]
    phases: tuple[WeightPhase, ...]
    now: datetime
    # Of a covariate that is missing: the mean of those that are not.
    missing: dict[int, float] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"experiment": self.experiment.pk, "now": self.now}

    @property
    def moved(self) -> str:
        """The condition that a unit's bucket moved after it was met."""
        ends = [phase.at for phase in self.phases[1:]]
        parts = []
        for phase, end in zip(self.phases, ends, strict=False):
            if not phase.moved:
                continue
            ranges = ",".join(f"[{low},{high})" for low, high in phase.moved)
            met = f"at < '{end.isoformat()}'::timestamptz"
            if phase is not self.phases[0]:
                met += f" AND at >= '{phase.at.isoformat()}'::timestamptz"
            parts.append(f"({met} AND bucket::int <@ '{{{ranges}}}'::int4multirange)")
        return f"({' OR '.join(parts)})" if parts else "FALSE"


def gather(experiment: Experiment, now: datetime) -> Gathered:
    """Return what was seen of the experiment until now."""
    variants = list(experiment.variants.order_by("position"))
    uses = uses_of(experiment)
    scan = _Scan(
        experiment,
        tuple(variant.name for variant in variants),
        tuple(metric_columns(experiment, uses)),
        tuple(_phases(experiment, variants)),
        now,
    )
    scan = _with_missing(scan)
    counted = _count(scan)
    whole = _moments(scan)
    strata = _moments(scan, experiment.stratify_by) if experiment.stratify_by else {}
    levels = {name: _moments(scan, name) for name in experiment.dimensions}
    metrics = tuple(
        _metric_data(scan, place, whole, strata, levels) for place in range(len(scan.metrics))
    )
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


def _count(scan: _Scan) -> _Counted:
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
    for name, phase, n, crossed_n, moved_n in _rows(sql, scan.parameters | {"starts": starts}):
        exposed[name] = exposed.get(name, 0) + n
        by_phase[phase, name] = n
        crossed += crossed_n
        moved += moved_n
    return _Counted({n: c for n, c in exposed.items() if c}, by_phase, crossed, moved)


# --- moments -------------------------------------------------------------------------------------


def _with_missing(scan: _Scan) -> _Scan:
    """Look up what stands in for a covariate that a unit has not."""
    places = [p for metric in scan.metrics if metric.has_covariate for p in _before(metric)]
    if not places:
        return scan
    sql = f"""
        SELECT {", ".join(f"avg(values[{place}])" for place in places)}
        FROM experiments_exposurerow WHERE experiment_id = %(experiment)s AND NOT crossed_over
    """  # noqa: S608 (numbers of ours)
    means = _rows(sql, scan.parameters)[0]
    missing = {place: mean or 0.0 for place, mean in zip(places, means, strict=True)}
    for metric in scan.metrics:
        if metric.metric.per_unit == Metric.PerUnit.SUM and metric.metric.kind == Metric.Kind.MEAN:
            missing |= dict.fromkeys(_before(metric), 0.0)
    return _Scan(scan.experiment, scan.names, scan.metrics, scan.phases, scan.now, missing)


def _before(metric: MetricColumns) -> tuple[int, ...]:
    return metric.places[len(metric.places) // 2 :] if metric.has_covariate else ()


def _values(scan: _Scan, columns: MetricColumns) -> list[str]:
    """Return the SQL of a unit's values of one metric: all of them, or all NULL."""
    metric = columns.metric
    is_ratio = metric.kind == Metric.Kind.RATIO
    now = columns.places[: len(columns.places) // 2] if columns.has_covariate else columns.places
    conditions = []
    if metric.window_s is not None:
        window = f"interval '{metric.window_s} seconds'"
        conditions.append(f"at + {window} <= %(now)s")
    if not metric.missing_is_zero:
        conditions.append(f"values[{now[-1]}] IS NOT NULL")
    first = f"coalesce(values[{now[0]}], 0)" if is_ratio or metric.missing_is_zero else ""
    first = first or f"values[{now[0]}]"
    if metric.cap is not None:
        first = f"least({first}, {metric.cap!r}::float8)"
    found = [first]
    if is_ratio:
        found.append(f"coalesce(values[{now[1]}], 0)")
    found += [
        f"coalesce(values[{place}], {scan.missing.get(place, 0.0)!r}::float8)"
        for place in _before(columns)
    ]
    if metric.source != Metric.Source.OUTCOMES or metric.kind == Metric.Kind.QUANTILE:
        conditions.append(f"{found[0]} IS NOT NULL")
    if not conditions:
        return found
    return [f"CASE WHEN {' AND '.join(conditions)} THEN {value} END" for value in found]


def _level(dimension: str) -> tuple[str, str]:
    """Return the SQL of a unit's level of a dimension, and the parameter it takes."""
    if dimension == TENANT:
        return "coalesce(nullif(tenant, ''), '(none)')", ""
    return "coalesce(attributes ->> %(dimension)s, '(none)')", dimension


def _moments(scan: _Scan, dimension: str = "") -> dict[tuple[str, str], list[Comoments]]:
    """Return the co-moments of each metric by (variant, level); the level is empty without one."""
    values = [_values(scan, metric) for metric in scan.metrics]
    names = [[f"m{i}_{j}" for j in range(len(parts))] for i, parts in enumerate(values)]
    picked = ", ".join(
        f"{sql} AS {name}"
        for parts, row in zip(values, names, strict=True)
        for sql, name in zip(parts, row, strict=True)
    )
    level, parameter = _level(dimension) if dimension else ("''", "")
    sums = ", ".join(_sums(row) for row in names)
    sql = f"""
        WITH seen AS (
            SELECT variant_name, {level} AS level, {picked}
            FROM experiments_exposurerow
            WHERE experiment_id = %(experiment)s AND NOT crossed_over AND NOT {scan.moved}
        )
        SELECT variant_name, level, count(*), {sums} FROM seen GROUP BY variant_name, level
    """  # noqa: S608 (expressions of ours)
    rows = _rows(sql, scan.parameters | {"dimension": parameter})
    if dimension:
        rows = _top_levels(rows)
    found: dict[tuple[str, str], list[Comoments]] = {}
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
    parts = [f"count({row[0]})", *(f"avg({name})" for name in row)]
    for i, a in enumerate(row):
        parts += [f"regr_sxy({a}, {b})" if a != b else f"regr_sxx({a}, {a})" for b in row[i:]]
    return ", ".join(parts)


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


# --- one metric ----------------------------------------------------------------------------------


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


def _metric_data(
    scan: _Scan,
    place: int,
    whole: dict[tuple[str, str], list[Comoments]],
    strata: dict[tuple[str, str], list[Comoments]],
    levels: dict[str, dict[tuple[str, str], list[Comoments]]],
) -> MetricData:
    columns = scan.metrics[place]
    spec = _spec(columns)
    moments = {name: whole[name, ""][place] for name in scan.names if (name, "") in whole}
    edges, counts = _distribution(scan, columns, list(moments.values()))
    arms = {
        name: ArmData(
            comoments=found,
            order=_order(scan, columns, name, found.n) if spec.quantile else None,
            counts=counts.get(name, ()),
            strata={lv: rows[place] for (arm, lv), rows in strata.items() if arm == name},
        )
        for name, found in moments.items()
    }
    breakdowns: dict[str, dict[str, dict[str, Comoments]]] = {}
    for dimension, rows in levels.items():
        by_level: dict[str, dict[str, Comoments]] = {}
        for (arm, level), found_rows in sorted(rows.items(), key=lambda item: item[0][1]):
            if arm in scan.names:
                by_level.setdefault(level, {})[arm] = found_rows[place]
        breakdowns[dimension] = by_level
    return MetricData(spec, arms, edges, breakdowns)


def _order(scan: _Scan, columns: MetricColumns, arm: str, n: int) -> OrderStatistics | None:
    if n == 0 or columns.metric.quantile_ppm is None:
        return None
    ranks = ranks_of(n, columns.metric.quantile_ppm / 1_000_000)
    # percentile_disc takes the first value whose cumulative share reaches the fraction.
    fractions = [(rank - 0.5) / n for rank in ranks]
    sql = f"""
        SELECT percentile_disc(%(fractions)s::float8[]) WITHIN GROUP (ORDER BY value)
        FROM (SELECT {_values(scan, columns)[0]} AS value FROM experiments_exposurerow
            WHERE experiment_id = %(experiment)s AND variant_name = %(arm)s
                AND NOT crossed_over AND NOT {scan.moved}) AS seen
        WHERE value IS NOT NULL
    """  # noqa: S608 (expressions of ours)
    low, value, high = _rows(sql, scan.parameters | {"fractions": fractions, "arm": arm})[0][0]
    return OrderStatistics(n, low, value, high)


def _distribution(
    scan: _Scan, columns: MetricColumns, arms: Sequence[Comoments]
) -> tuple[tuple[float, ...], dict[str, tuple[int, ...]]]:
    """Return edges between the extremes, within four deviations, and the arms' units per bin."""
    units = sum(arm.n for arm in arms)
    if columns.metric.kind in {Metric.Kind.PROPORTION, Metric.Kind.RATIO} or units < 2:
        return (), {}
    every = max(1, units // DRAWN_MAX) if not columns.use.mann_whitney else 1
    edges = _edges(arms)
    if not edges:
        return (), {}
    value = _values(scan, columns)[0]
    sql = f"""
        SELECT variant_name, width_bucket(value, %(edges)s::float8[]) AS bin, count(*)
        FROM (SELECT variant_name, {value} AS value FROM experiments_exposurerow
            WHERE experiment_id = %(experiment)s AND NOT crossed_over AND NOT {scan.moved}
                AND bucket %% %(every)s = 0) AS seen
        WHERE value IS NOT NULL GROUP BY variant_name, bin
    """  # noqa: S608 (expressions of ours)
    counts: dict[str, list[int]] = {}
    for name, at_bin, n in _rows(sql, scan.parameters | {"edges": list(edges), "every": every}):
        if name in scan.names:
            counts.setdefault(name, [0] * (len(edges) + 1))[at_bin] += n
    return edges, {name: tuple(found) for name, found in counts.items()}


def _edges(arms: Sequence[Comoments]) -> tuple[float, ...]:
    whole = Comoments.empty(1)
    for arm in arms:
        whole = whole.merge(Comoments(arm.n, arm.means[:1], (arm.product(0, 0),)))
    variance = whole.covariance(0, 0) or 0.0
    reach = 4.0 * variance**0.5
    if not reach > 0.0:
        return ()
    low, step = whole.means[0] - reach, 2.0 * reach / BINS
    return tuple(low + step * i for i in range(1, BINS))


def _rows(sql: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())
