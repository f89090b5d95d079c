"""What a draft can find: units, days and effects, from what its model and metric show today.

The statistics are `stats.power`; here is where its numbers come from. Nothing is written.
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
# An arm of a past experiment with fewer units says too little.
BASELINE_UNITS_MIN = 100
RECENT = timedelta(days=7)
RECENT_ROWS_MAX = 200_000
RECENT_WITHIN_MS = 3_000
# Where days are shown; beyond the last one nobody waits.
DAYS = (1, 2, 3, 5, 7, 10, 14, 21, 28, 42, 56, 91)
DAYS_MAX = 730.0
DAY_S = 86_400
# With fewer hours, how units accumulate over days is unknown.
GROWTH_HOURS_MIN = 48


@dataclass(frozen=True)
class Asked:
    """What a person asks for; what is left out is looked up, or has a usual value.

    `effect` is absolute, `relative` of the baseline's mean; `mean` and `sd` replace the baseline.
    """

    effect: float | None = None
    relative: float | None = None
    power: float = POWER
    mean: float | None = None
    sd: float | None = None


@dataclass(frozen=True)
class Traffic:
    """How many different units ask: `a_day` on the first day, `a_day`·dᵍʳᵒʷᵗʰ in d days."""

    a_day: float
    growth: float
    hours: int
    told: str

    def units_in(self, days: float) -> float:
        return self.a_day * float(days**self.growth)

    def days_for(self, units: float) -> float | None:
        """Return the days until so many came; None where that takes years."""
        if self.a_day <= 0.0 or self.growth <= 0.0:
            return 0.0 if units <= self.a_day else None
        log_days = math.log(max(units, 1e-9) / self.a_day) / self.growth
        return math.exp(log_days) if log_days <= math.log(DAYS_MAX) else None


def plan_size(experiment: Experiment, asked: Asked, now: datetime) -> dict[str, Any]:
    """Return sizes, days and detectable effects of the primary metric, and guardrails' sizes.

    Raises Invalid for an effect, a power or a baseline that makes no sense.
    """
    uses = uses_of(experiment)
    if not uses:
        raise Invalid("metrics: the draft has no metric yet")
    traffic = traffic_of(experiment, now)
    primary = uses[0]
    try:
        design = _design(experiment, asked.power)
        found, source = _baseline(experiment, primary, asked, now)
        plan = {
            "metric": primary.metric.name,
            "alpha": experiment.alpha_ppm / 1_000_000,
            "level": design.level,
            "power": design.power,
            "planned_units": experiment.planned_units,
            "traffic": _traffic_json(traffic),
            "baseline": None if found is None else _baseline_json(found, source),
            "reason": source if found is None else "",
            "guardrails": _guardrails(experiment, uses, design, traffic, now),
        }
        return plan | (_sizes(experiment, found, design, asked, traffic) if found else {})
    except ValueError as error:
        raise Invalid(str(error)) from None


def _sizes(
    experiment: Experiment, found: Baseline, design: Design, asked: Asked, traffic: Traffic | None
) -> dict[str, Any]:
    effect = _effect(found, asked)
    sizes = []
    for reading in (False, True):
        needed = units_needed(found, design, effect, is_sequential=reading)
        units = _at_least(found, design, needed)
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
        "note": _skewed(found, design),
        "effect": effect,
        "effect_relative": effect / abs(found.mean) if found.mean else None,
        "sizes": sizes,
        "planned": _detectable(found, design, experiment.planned_units)
        | {"days": _days(traffic, experiment.planned_units)},
        "curve": [{"days": days} | _detectable(found, design, units) for days, units in at],
    }


def _detectable(found: Baseline, design: Design, units: int) -> dict[str, Any]:
    return {
        "units": units,
        "fixed": detectable(found, design, units),
        "sequential": detectable(found, design, units, is_sequential=True),
    }


def _effect(found: Baseline, asked: Asked) -> float:
    if asked.effect is not None and asked.relative is not None:
        raise Invalid("effect: name it either absolute or relative")
    if asked.effect is not None:
        return asked.effect
    relative = RELATIVE if asked.relative is None else asked.relative
    if found.mean == 0.0:
        raise Invalid("effect: the baseline is 0, so that it must be absolute")
    return relative * abs(found.mean)


def _design(experiment: Experiment, power: float) -> Design:
    variants = variants_of(experiment)
    control = next((v.weight_bp for v in variants if v.is_control), 0)
    smallest = min((v.weight_bp for v in variants if not v.is_control), default=0)
    if control <= 0 or smallest <= 0:
        raise Invalid("variants: control and each treatment need a weight above 0 to plan a size")
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
        found, source = _baseline(experiment, use, Asked(), now)
        units = margin_units(found, design, use.margin) if found else None
        units = _at_least(found, design, units) if found else None
        rows.append(
            {
                "metric": use.metric.name,
                "margin": use.margin,
                "units": units,
                "days": _days(traffic, units),
                "reason": "" if found else source,
            }
        )
    return rows


def _at_least(baseline: Baseline, design: Design, units: int | None) -> int | None:
    """Return `units`, or so many that each arm has what a reading waits for."""
    if units is None:
        return None
    waited_for = math.ceil(UNITS_MIN / min(design.shares))
    return max(units, waited_for, units_carried(baseline, design))


def _skewed(found: Baseline, design: Design) -> str:
    """Return in words what skewed values ask for, or nothing where they ask for little."""
    units = units_carried(found, design)
    if units <= UNITS_MIN / min(design.shares):
        return ""
    return (
        f"units' values are skewed (skewness {found.skewness:.3g}): at these weights nothing is "
        f"read before {units:,} units; a cap, or more even weights, need fewer"
    )


def _days(traffic: Traffic | None, units: int | None) -> float | None:
    return traffic.days_for(units) if traffic and units is not None else None


def _traffic_json(traffic: Traffic | None) -> dict[str, Any]:
    if traffic is None:
        told = "no data plane has reported which units ask this model yet, so days are unknown"
        return {"units_a_day": None, "growth": None, "hours": 0, "told": told}
    return {
        "units_a_day": traffic.a_day,
        "growth": traffic.growth,
        "hours": traffic.hours,
        "told": traffic.told,
    }


def _baseline_json(found: Baseline, source: str) -> dict[str, Any]:
    skewness = found.skewness or None
    return {"mean": found.mean, "sd": found.sd, "skewness": skewness, "source": source}


# --- the baseline --------------------------------------------------------------------------------


def _baseline(
    experiment: Experiment, use: MetricUse, asked: Asked, now: datetime
) -> tuple[Baseline | None, str]:
    """Return the baseline and where it is from, or None and what is missing."""
    metric = use.metric
    is_rate = metric.kind == Metric.Kind.PROPORTION
    if asked.mean is not None and (is_rate or asked.sd is not None):
        return Baseline(asked.mean, None if is_rate else asked.sd), "as given"
    if asked.mean is not None or (asked.sd is not None and not is_rate):
        raise Invalid("a baseline of a metric that is no proportion takes both mean and sd")
    seen = _from_experiments(experiment, metric) or _from_outcomes(metric, now)
    if seen is None:
        wanted = "its rate" if is_rate else "its mean and the spread (sd) of units' values"
        return None, f"{metric.name} has no past on {experiment.model.name}: give {wanted}"
    mean, sd, skewness, source = seen
    if not is_rate and not sd:
        return None, f"{source} shows no spread of {metric.name}: give its mean and sd"
    try:
        return Baseline(mean, None if is_rate else sd, skewness), source
    except ValueError as error:
        return None, f"{source}: {error}"


def _from_experiments(
    experiment: Experiment, metric: Metric
) -> tuple[float, float | None, float, str] | None:
    """Return what control showed in the last experiment of the model on the metric."""
    rows = Experiment.objects.filter(
        model=experiment.model, metric_uses__metric=metric, refreshed_at__isnull=False
    ).exclude(pk=experiment.pk)
    for row in rows.order_by("-refreshed_at")[:10]:
        for found in row.result.get("metrics", ()):
            if found["name"] != metric.name:
                continue
            control = next((arm for arm in found["arms"] if arm["is_control"]), None)
            if control and control["n"] >= BASELINE_UNITS_MIN and control["mean"] is not None:
                told = f"control of {row.name}"
                return control["mean"], _spread(found, control), _skewness(found), told
    return None


def _spread(found: dict[str, Any], control: dict[str, Any]) -> float | None:
    """Return the spread that the standard error of a difference comes from, for every kind."""
    sizes = {arm["name"]: arm["n"] for arm in found["arms"]}
    for comparison in found.get("comparisons", ()):
        n, error = sizes.get(comparison["arm"], 0), comparison.get("standard_error")
        if n >= BASELINE_UNITS_MIN and error:
            return float(error / math.sqrt(1.0 / n + 1.0 / control["n"]))
    return control.get("sd")


def _skewness(found: dict[str, Any]) -> float:
    """Return the largest skewness that a comparison showed; 0 where none is known, as of before."""
    known = [comparison.get("skewness") or 0.0 for comparison in found.get("comparisons", ())]
    return max(known, key=abs, default=0.0)


def _from_outcomes(metric: Metric, now: datetime) -> tuple[float, float, float, str] | None:
    """Return what units with an outcome show of late; None where those without one count as 0."""
    kinds = {Metric.Kind.PROPORTION, Metric.Kind.MEAN}
    if metric.source != Metric.Source.OUTCOMES or metric.kind not in kinds:
        return None
    if metric.missing_is_zero:
        return None
    made = "max" if metric.per_unit == Metric.PerUnit.MAX else "avg"
    made = "sum" if metric.per_unit == Metric.PerUnit.SUM else made
    value = f"{made}(value)" if metric.cap is None else f"least({made}(value), {metric.cap!r})"
    sql = f"""
        SELECT count(*), avg(y), stddev_samp(y) FROM (
            SELECT {value} AS y FROM (
                SELECT unit, value FROM experiments_outcomerow
                WHERE metric_id = %s AND received_at >= %s LIMIT {RECENT_ROWS_MAX}
            ) AS late GROUP BY unit
        ) AS per_unit
    """  # noqa: S608 (words and numbers of ours)
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
    return mean, sd, 0.0, f"{n:,} units with outcomes of the last {RECENT.days} days"


# --- traffic -------------------------------------------------------------------------------------


def traffic_of(experiment: Experiment, now: datetime) -> Traffic | None:
    """Return how many units would take part; None before any data plane told of the model."""
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
        hours_seen = max(now - this_hour, timedelta(minutes=1)) / timedelta(hours=1)
    else:
        hours_seen = float(hours)
    last_day = [row for row in rows if row.hour >= this_hour - timedelta(days=1)]
    day, whole = _units(last_day), _units(rows)
    told = [f"{whole:,.0f} different units in the last {_span(hours_seen)}"]
    a_day, growth = day, 1.0
    if hours < 24:
        a_day = day * 24.0 / hours_seen
        told.append("other units are taken to come at the same rate for a day")
    if hours >= GROWTH_HOURS_MIN and day > 0.0:
        growth = min(1.0, max(0.0, math.log(max(1.0, whole / day)) / math.log(hours / 24.0)))
        told.append(f"of which {day:,.0f} in the last day; they go on to accumulate like that")
    else:
        told.append("each day is taken to bring as many that did not come before")
    included = experiment.coverage_bp / BUCKETS * (1.0 - experiment.holdout_bp / BUCKETS)
    if experiment.tenants or experiment.headers:
        told.append("how many of them the targeting means is unknown: all are counted")
    return Traffic(a_day * included, growth, hours, "; ".join(told))


def _units(rows: Iterable[UnitCount]) -> float:
    return estimate(merge(*(from_signed(row.smallest) for row in rows)))


def _span(hours: float) -> str:
    if hours < 1.0:
        return f"{hours * 60:.0f} minutes"
    if hours < 1.5:
        return "hour"
    return f"{hours:.0f} hours" if hours < GROWTH_HOURS_MIN else f"{hours / 24:.0f} days"
