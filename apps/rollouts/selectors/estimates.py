"""How long a plan would take, in words: at a model's traffic of late, or at usual rates of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection

from apps.models.models import RegisteredModel
from apps.rollouts.durations import format_duration
from apps.rollouts.estimates import StepEstimate, UsualTraffic, estimate_plan
from apps.rollouts.latency_baseline import usual_latency
from apps.rollouts.models import TelemetryRow
from apps.rollouts.plans import PlanDocument

HOUR = timedelta(hours=1)
PERIODS = (("the last day", timedelta(days=1)), ("the last week", timedelta(days=7)))
# Beyond that one minute of each hour is looked at.
ROWS_MAX = 100_000
# Below it a rate says nothing.
SPAN_LEAST_S = 60.0
# Requests a second that a plan's page shows, with their names.
RATES = (
    ("1,000 a second", 1_000.0),
    ("100 a second", 100.0),
    ("10 a second", 10.0),
    ("1 a second", 1.0),
    ("1 a minute", 1.0 / 60.0),
    ("3 an hour", 3.0 / 3_600.0),
)


@dataclass(frozen=True)
class StepTime:
    """One step: its expected time and what that is due to."""

    number: int
    weight_bp: int
    expected_s: float | None
    is_in_time: bool
    told: str


@dataclass(frozen=True)
class PlanTime:
    """A plan at one rate of traffic; `expected_s` is None where a step can never pass by itself."""

    period: str
    per_second: float
    error_rate: float
    expected_s: float | None
    can_decide: bool
    told: str
    steps: tuple[StepTime, ...] = ()

    @property
    def rate(self) -> str:
        """The traffic in words: 2.7 requests a second, 3 requests an hour."""
        for unit, length_s in (("second", 1.0), ("minute", 60.0)):
            if self.per_second * length_s >= 1.0:
                return f"{self.per_second * length_s:,.3g} requests a {unit}"
        return f"{self.per_second * 3_600:,.3g} requests an hour"

    @property
    def slowest(self) -> StepTime:
        return max(self.steps, key=lambda step: _or_for_ever(step.expected_s))


def _or_for_ever(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def times_of_model(plan: PlanDocument, model: RegisteredModel, now: datetime) -> list[PlanTime]:
    """Return how long the plan takes at the model's traffic of the last day and week.

    A period without any traffic is left out; one that is longer than there was traffic begins with
    the first request.
    """
    found: list[PlanTime] = []
    last_span_s = 0.0
    for name, reach in PERIODS:
        traffic = traffic_of(model, now, reach)
        # A week of which only the last day had traffic says nothing that the day does not.
        if traffic is None or traffic.span_s < 1.1 * last_span_s:
            continue
        last_span_s = traffic.span_s
        is_whole = traffic.span_s >= 0.9 * reach.total_seconds()
        period = name if is_whole else f"the last {format_duration(traffic.span_s)}"
        found.append(time_of(plan, traffic, period))
    return found


def times_at_rates(plan: PlanDocument) -> list[PlanTime]:
    """Return how long the plan takes at usual rates of traffic, with 1 % errors."""
    return [time_of(plan, UsualTraffic(rate), name) for name, rate in RATES]


def time_of(plan: PlanDocument, traffic: UsualTraffic, period: str) -> PlanTime:
    """Return how long `plan`, as it is saved, takes for a version that is as good as stable."""
    estimates = estimate_plan(plan.as_followed(), traffic)
    times = [each.expected_s for each in estimates]
    total = None if None in times else math.fsum(each for each in times if each is not None)
    late = [each for each in estimates if not each.is_in_time]
    unknown = sorted({name for each in estimates for name in each.unknown})
    return PlanTime(
        period=period,
        per_second=traffic.per_second,
        error_rate=traffic.error_rate,
        expected_s=total,
        can_decide=not late,
        told=_sum_up(total, late) + (f" ({', '.join(unknown)} not counted)" if unknown else ""),
        steps=tuple(map(_step, estimates)),
    )


def _sum_up(total: float | None, late: list[StepEstimate]) -> str:
    if not late:
        return f"about {format_duration(total or 0.0)}"
    steps = " and ".join(str(each.number) for each in late)
    what = "step" if len(late) == 1 else "steps"
    return f"it would pause for a person in {what} {steps}"


def _step(estimate: StepEstimate) -> StepTime:
    return StepTime(
        estimate.number,
        estimate.weight_bp,
        estimate.expected_s,
        estimate.is_in_time,
        tell_step(estimate),
    )


def tell_step(estimate: StepEstimate) -> str:
    """Return what a step's time is due to, and what happens where it is too long."""
    slowest = estimate.needs[0] if estimate.needs else None
    if slowest is not None and math.isinf(slowest.answers):
        return f"{slowest.check} can never pass here: it pauses for a person after its bake time"
    waits = f"it waits {format_duration(estimate.limit_s)}, then pauses for a person"
    if estimate.expected_s is None:
        return f"it can never pass at this traffic: {waits}"
    time = f"about {format_duration(estimate.expected_s)}"
    if slowest is None or slowest.seconds <= estimate.bake_s:
        return f"{time}: its bake time"
    told = f"{time}: {slowest.check} needs about {slowest.answers:,.0f} of the canary's answers"
    return told if estimate.is_in_time else f"{told}; {waits}"


def traffic_of(model: RegisteredModel, now: datetime, reach: timedelta) -> UsualTraffic | None:
    """Return the model's traffic within `reach`, from its first request there; None without any."""
    rows = TelemetryRow.objects.filter(model_name=model.name, ended_at__gt=now - reach)
    first = rows.order_by("ended_at").values_list("started_at", flat=True).first()
    if first is None:
        return None
    span_s = max(SPAN_LEAST_S, (now - max(first, now - reach)).total_seconds())
    stable = str(model.stable.number) if model.stable else ""
    requests, exposures, answered, errors = _sums(str(model.name), stable, now, reach)
    return UsualTraffic(
        per_second=requests / span_s,
        error_rate=errors / answered if answered else 0.0,
        latency=usual_latency(str(model.name), stable, now=now, reach=HOUR).counts,
        exposures_per_second=exposures / span_s,
        span_s=span_s,
    )


def _sums(model: str, stable: str, now: datetime, reach: timedelta) -> tuple[float, ...]:
    """Return requests and exposures of all versions, and exposures and errors of stable."""
    lately = TelemetryRow.objects.filter(model_name=model, ended_at__gt=now - HOUR).count()
    is_much = lately * (reach / HOUR) > ROWS_MAX
    width, scale = ("1 minute", 60.0) if is_much else ("1 hour", 1.0)
    with connection.cursor() as cursor:
        cursor.execute(SUMS, [stable, stable, now - reach, now - HOUR, width, model])
        return tuple(scale * float(each or 0) for each in cursor.fetchone())


SUMS = """
    SELECT sum(requests), sum(units + anonymous),
           sum(units + anonymous) FILTER (WHERE version_number = %s),
           sum(unit_errors + anonymous_errors) FILTER (WHERE version_number = %s)
    FROM generate_series(%s::timestamptz, %s::timestamptz, interval '1 hour') AS slot
    JOIN rollouts_telemetryrow
      ON ended_at > slot AND ended_at <= slot + %s::interval AND model_name = %s
    WHERE variant <> 'explicit'
"""
