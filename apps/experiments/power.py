"""Plan the size of a draft: units, days and detectable effects, from its model's and metric's data.

`stats.power` holds the statistics; this module supplies its numbers. It writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import OperationalError, connection, transaction

from apps.experiments.columns import uses_of
from apps.experiments.lifecycle import variants_of
from apps.experiments.models import Experiment, Metric, MetricUse, UnitCount
from apps.experiments.stats.power import (
    Baseline,
    Design,
    detectable,
    level_of,
    margin_units,
    units_carried,
    units_needed,
)
from apps.experiments.stats.sequential import UNITS_MIN
from apps.experiments.unit_sketches import estimate, from_signed, merge
from apps.lib.errors import Invalid
from contract.bucketing import BUCKETS

RELATIVE = 0.05
POWER = 0.8
# An arm of a past experiment with fewer units is not used as a baseline.
BASELINE_UNITS_MIN = 100
RECENT = timedelta(days=7)
RECENT_ROWS_MAX = 200_000
RECENT_WITHIN_MS = 3_000
# Days of the curve.
DAYS = (1, 2, 3, 5, 7, 10, 14, 21, 28, 42, 56, 91)
DAYS_MAX = 730.0
DAY_S = 86_400
# With fewer hours, the growth of units over days is unknown.
GROWTH_HOURS_MIN = 48


@dataclass(frozen=True)
class PowerRequest:
    """Parameters of a plan; an omitted one is looked up or has a default.

    `effect` is absolute, `relative` a share of the baseline's mean; `mean` and `sd` replace the
    baseline.
    """

    effect: float | None = None
    relative: float | None = None
    power: float = POWER
    mean: float | None = None
    sd: float | None = None


@dataclass(frozen=True)
class Traffic:
    """Number of different units: `a_day` on the first day, `a_day`·dᵍʳᵒʷᵗʰ in d days."""

    a_day: float
    growth: float
    hours: int
    summary: str

    def units_in(self, days: float) -> float:
        return self.a_day * float(days**self.growth)

    def days_for(self, units: float) -> float | None:
        """Return the days until `units` different units came; None beyond `DAYS_MAX`."""
        if self.a_day <= 0.0 or self.growth <= 0.0:
            return 0.0 if units <= self.a_day else None
        log_days = math.log(max(units, 1e-9) / self.a_day) / self.growth
        return math.exp(log_days) if log_days <= math.log(DAYS_MAX) else None


def plan_size(experiment: Experiment, request: PowerRequest, now: datetime) -> dict[str, Any]:
    """Return sizes, days and detectable effects of the primary metric, and guardrails' sizes.

    Raises Invalid for an effect, a power or a baseline out of range.
    """
    uses = uses_of(experiment)
    if not uses:
        raise Invalid("the draft has no metric", field="metrics")
    traffic = traffic_of(experiment, now)
    primary = uses[0]
    try:
        design = _design(experiment, request.power)
        baseline, source = _baseline(experiment, primary, request, now)
        plan = {
            "metric": primary.metric.name,
            "alpha": experiment.alpha_ppm / 1_000_000,
            "level": design.level,
            "power": design.power,
            "planned_units": experiment.planned_units,
            "traffic": _traffic_json(traffic),
            "baseline": None if baseline is None else _baseline_json(baseline, source),
            "reason": source if baseline is None else "",
            "guardrails": _guardrails(experiment, uses, design, traffic, now),
        }
        return plan | (_sizes(experiment, baseline, design, request, traffic) if baseline else {})
    except ValueError as error:
        raise Invalid(str(error)) from None


def _sizes(
    experiment: Experiment,
    baseline: Baseline,
    design: Design,
    request: PowerRequest,
    traffic: Traffic | None,
) -> dict[str, Any]:
    effect = _effect(baseline, request)
    sizes = []
    for reading in (False, True):
        needed = units_needed(baseline, design, effect, is_sequential=reading)
        units = _at_least(baseline, design, needed)
        sizes.append(
            {
                "reading": "sequential" if reading else "fixed-horizon",
                "units": units,
                "control_units": None if units is None else math.ceil(units * design.shares[0]),
                "days": _days(traffic, units),
            }
        )
    at = [(days, int(traffic.units_in(days))) for days in DAYS] if traffic else []
    return {
        "note": _skewness_note(baseline, design),
        "effect": effect,
        "effect_relative": effect / abs(baseline.mean) if baseline.mean else None,
        "sizes": sizes,
        "planned": _detectable(baseline, design, experiment.planned_units)
        | {"days": _days(traffic, experiment.planned_units)},
        "curve": [{"days": days} | _detectable(baseline, design, units) for days, units in at],
    }


def _detectable(baseline: Baseline, design: Design, units: int) -> dict[str, Any]:
    return {
        "units": units,
        "fixed": detectable(baseline, design, units),
        "sequential": detectable(baseline, design, units, is_sequential=True),
    }


def _effect(baseline: Baseline, request: PowerRequest) -> float:
    if request.effect is not None and request.relative is not None:
        raise Invalid("give either an absolute or a relative effect, not both", field="effect")
    if request.effect is not None:
        return request.effect
    relative = RELATIVE if request.relative is None else request.relative
    if baseline.mean == 0.0:
        raise Invalid("the baseline is 0; give an absolute effect", field="effect")
    return relative * abs(baseline.mean)


def _design(experiment: Experiment, power: float) -> Design:
    variants = variants_of(experiment)
    control = next((v.weight_bp for v in variants if v.is_control), 0)
    smallest = min((v.weight_bp for v in variants if not v.is_control), default=0)
    if control <= 0 or smallest <= 0:
        raise Invalid("planning a size needs weights above 0 for all variants", field="variants")
    level = level_of(experiment.alpha_ppm / 1_000_000, len(variants))
    return Design((control / BUCKETS, smallest / BUCKETS), level, power)


def _guardrails(
    experiment: Experiment,
    uses: Iterable[MetricUse],
    design: Design,
    traffic: Traffic | None,
    now: datetime,
) -> list[dict[str, Any]]:
    rows = []
    for use in uses:
        if use.margin is None:
            continue
        baseline, source = _baseline(experiment, use, PowerRequest(), now)
        units = margin_units(baseline, design, use.margin) if baseline else None
        units = _at_least(baseline, design, units) if baseline else None
        rows.append(
            {
                "metric": use.metric.name,
                "margin": use.margin,
                "units": units,
                "days": _days(traffic, units),
                "reason": "" if baseline else source,
            }
        )
    return rows


def _at_least(baseline: Baseline, design: Design, units: int | None) -> int | None:
    """Return `units`, raised to the minimum with which each arm can be read."""
    if units is None:
        return None
    units_min = math.ceil(UNITS_MIN / min(design.shares))
    return max(units, units_min, units_carried(baseline, design))


def _skewness_note(baseline: Baseline, design: Design) -> str:
    """Return a note on the units that skewed values need, or an empty string."""
    units = units_carried(baseline, design)
    if units <= UNITS_MIN / min(design.shares):
        return ""
    return (
        f"units' values are skewed (skewness {baseline.skewness:.3g}): with these weights there is "
        f"no verdict below {units:,} units; a cap or more even weights need fewer"
    )


def _days(traffic: Traffic | None, units: int | None) -> float | None:
    return traffic.days_for(units) if traffic and units is not None else None


def _traffic_json(traffic: Traffic | None) -> dict[str, Any]:
    if traffic is None:
        summary = "no data plane has reported units of this model yet; days are unknown"
        return {"units_a_day": None, "growth": None, "hours": 0, "summary": summary}
    return {
        "units_a_day": traffic.a_day,
        "growth": traffic.growth,
        "hours": traffic.hours,
        "summary": traffic.summary,
    }


def _baseline_json(baseline: Baseline, source: str) -> dict[str, Any]:
    skewness = baseline.skewness or None
    return {"mean": baseline.mean, "sd": baseline.sd, "skewness": skewness, "source": source}


# --- the baseline --------------------------------------------------------------------------------


def _baseline(
    experiment: Experiment, use: MetricUse, request: PowerRequest, now: datetime
) -> tuple[Baseline | None, str]:
    """Return the baseline and its source, or None and what is missing."""
    metric = use.metric
    is_rate = metric.kind == Metric.Kind.PROPORTION
    if request.mean is not None and (is_rate or request.sd is not None):
        return Baseline(request.mean, None if is_rate else request.sd), "as given"
    if request.mean is not None or (request.sd is not None and not is_rate):
        raise Invalid("a baseline needs both mean and sd, unless the metric is a proportion")
    history = _from_experiments(experiment, metric) or _from_outcomes(metric, now)
    if history is None:
        missing = "its rate" if is_rate else "its mean and the sd of its units' values"
        return None, f"{metric.name} has no data on {experiment.model.name}: give {missing}"
    mean, sd, skewness, source = history
    if not is_rate and not sd:
        return None, f"{source}: {metric.name} has no standard deviation; give mean and sd"
    try:
        return Baseline(mean, None if is_rate else sd, skewness), source
    except ValueError as error:
        return None, f"{source}: {error}"


def _from_experiments(
    experiment: Experiment, metric: Metric
) -> tuple[float, float | None, float, str] | None:
    """Return mean, sd, skewness and source of control in the last such experiment."""
    rows = Experiment.objects.filter(
        model=experiment.model, metric_uses__metric=metric, refreshed_at__isnull=False
    ).exclude(pk=experiment.pk)
    for row in rows.order_by("-refreshed_at")[:10]:
        for entry in row.result.get("metrics", ()):
            if entry["name"] != metric.name:
                continue
            control = next((arm for arm in entry["arms"] if arm["is_control"]), None)
            if control and control["n"] >= BASELINE_UNITS_MIN and control["mean"] is not None:
                source = f"control of {row.name}"
                return control["mean"], _spread(entry, control), _skewness(entry), source
    return None


def _spread(metric: dict[str, Any], control: dict[str, Any]) -> float | None:
    """Return the sd that the standard error of a difference implies; works for every kind."""
    sizes = {arm["name"]: arm["n"] for arm in metric["arms"]}
    for comparison in metric.get("comparisons", ()):
        n, error = sizes.get(comparison["arm"], 0), comparison.get("standard_error")
        if n >= BASELINE_UNITS_MIN and error:
            return float(error / math.sqrt(1.0 / n + 1.0 / control["n"]))
    return control.get("sd")


def _skewness(metric: dict[str, Any]) -> float:
    """Return the largest skewness of the comparisons; 0 if unknown, as in old results."""
    known = [comparison.get("skewness") or 0.0 for comparison in metric.get("comparisons", ())]
    return max(known, key=abs, default=0.0)


def _from_outcomes(metric: Metric, now: datetime) -> tuple[float, float, float, str] | None:
    """Return mean, sd, skewness and source from recent outcomes.

    None for metrics where a unit without an outcome counts as 0, or with too few units.
    """
    kinds = {Metric.Kind.PROPORTION, Metric.Kind.MEAN}
    if metric.source != Metric.Source.OUTCOMES or metric.kind not in kinds:
        return None
    if metric.missing_is_zero:
        return None
    function = "max" if metric.per_unit == Metric.PerUnit.MAX else "avg"
    function = "sum" if metric.per_unit == Metric.PerUnit.SUM else function
    value = f"{function}(value)"
    if metric.cap is not None:
        value = f"least({value}, {metric.cap!r})"
    sql = f"""
        SELECT count(*), avg(y), stddev_samp(y) FROM (
            SELECT {value} AS y FROM (
                SELECT unit, value FROM experiments_outcomerow
                WHERE metric_id = %s AND received_at >= %s LIMIT {RECENT_ROWS_MAX}
            ) AS recent GROUP BY unit
        ) AS per_unit
    """  # noqa: S608 (constants only)
    sent = metric.outcomes_of_id or metric.pk
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {RECENT_WITHIN_MS}")
            cursor.execute(sql, [sent, now - RECENT])
            n, mean, sd = cursor.fetchone()
    except OperationalError:
        return None
    if n < BASELINE_UNITS_MIN:
        return None
    return mean, sd, 0.0, f"{n:,} units with outcomes in the last {RECENT.days} days"


# --- traffic -------------------------------------------------------------------------------------


def traffic_of(experiment: Experiment, now: datetime) -> Traffic | None:
    """Return the traffic that would take part; None before a data plane reported units."""
    this_hour = now.replace(minute=0, second=0, microsecond=0)
    rows = list(
        UnitCount.objects.filter(
            model=experiment.model, hour__lt=this_hour, hour__gte=this_hour - RECENT
        ).order_by("hour")
    ) or list(UnitCount.objects.filter(model=experiment.model, hour=this_hour))
    if not rows:
        return None
    hours = int((this_hour - rows[0].hour).total_seconds() // 3_600)
    if hours == 0:
        hours_observed = max(now - this_hour, timedelta(minutes=1)) / timedelta(hours=1)
    else:
        hours_observed = float(hours)
    last_day = [row for row in rows if row.hour >= this_hour - timedelta(days=1)]
    day, whole = _units(last_day), _units(rows)
    notes = [f"{whole:,.0f} different units in the last {_span(hours_observed)}"]
    a_day, growth = day, 1.0
    if hours < 24:
        a_day = day * 24.0 / hours_observed
        notes.append("new units are assumed to come at the same rate for a day")
    if hours >= GROWTH_HOURS_MIN and day > 0.0:
        growth = min(1.0, max(0.0, math.log(max(1.0, whole / day)) / math.log(hours / 24.0)))
        notes.append(f"of which {day:,.0f} in the last day; the same growth is assumed")
    else:
        notes.append("every day is assumed to bring as many new units")
    included = experiment.coverage_bp / BUCKETS * (1.0 - experiment.holdout_bp / BUCKETS)
    if experiment.tenants or experiment.headers:
        notes.append("all units are counted: the share that the targeting includes is unknown")
    return Traffic(a_day * included, growth, hours, "; ".join(notes))


def _units(rows: Iterable[UnitCount]) -> float:
    return estimate(merge(*(from_signed(row.smallest) for row in rows)))


def _span(hours: float) -> str:
    if hours < 1.0:
        return f"{hours * 60:.0f} minutes"
    if hours < 1.5:
        return "hour"
    return f"{hours:.0f} hours" if hours < GROWTH_HOURS_MIN else f"{hours / 24:.0f} days"
