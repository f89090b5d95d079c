"""Expected durations of a plan, at the recent traffic of a model or at common rates."""

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
# With more rows only one minute of each hour is read.
ROWS_MAX = 100_000
# A rate over a shorter span is not meaningful.
SPAN_MIN_S = 60.0
# Request rates on the page of a plan: label and requests per second.
RATES = (
    ("1,000 per second", 1_000.0),
    ("100 per second", 100.0),
    ("10 per second", 10.0),
    ("1 per second", 1.0),
    ("1 per minute", 1.0 / 60.0),
    ("3 per hour", 3.0 / 3_600.0),
)


@dataclass(frozen=True)
class StepTime:
    """The expected time of one step, and its cause."""

    number: int
    weight_bp: int
    expected_s: float | None
    is_in_time: bool
    summary: str


@dataclass(frozen=True)
class PlanTime:
    """A plan at one request rate; `expected_s` is None if a step can never pass by itself."""

    period: str
    per_second: float
    error_rate: float
    expected_s: float | None
    can_decide: bool
    summary: str
    steps: tuple[StepTime, ...] = ()

    @property
    def rate(self) -> str:
        """The request rate as text: 2.7 requests per second, 3 requests per hour."""
        for unit, length_s in (("second", 1.0), ("minute", 60.0)):
            if self.per_second * length_s >= 1.0:
                return f"{self.per_second * length_s:,.3g} requests per {unit}"
        return f"{self.per_second * 3_600:,.3g} requests per hour"

    @property
    def slowest(self) -> StepTime:
        return max(self.steps, key=lambda step: _or_infinity(step.expected_s))


def _or_infinity(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def times_of_model(plan: PlanDocument, model: RegisteredModel, now: datetime) -> list[PlanTime]:
    """Return the durations at the traffic of the model in the last day and week.

    Periods without traffic are left out; a period starts at its first request.
    """
    times: list[PlanTime] = []
    last_span_s = 0.0
    for name, reach in PERIODS:
        traffic = traffic_of(model, now, reach)
        # A week with traffic only on the last day adds nothing.
        if traffic is None or traffic.span_s < 1.1 * last_span_s:
            continue
        last_span_s = traffic.span_s
        is_whole = traffic.span_s >= 0.9 * reach.total_seconds()
        period = name if is_whole else f"the last {format_duration(traffic.span_s)}"
        times.append(time_of(plan, traffic, period))
    return times


def times_at_rates(plan: PlanDocument) -> list[PlanTime]:
    """Return the durations at common request rates, with 1 % errors."""
    return [time_of(plan, UsualTraffic(rate), name) for name, rate in RATES]


def time_of(plan: PlanDocument, traffic: UsualTraffic, period: str) -> PlanTime:
    """Return the duration of a saved plan for a version as good as stable."""
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
        summary=_summary(total, late) + (f" ({', '.join(unknown)} not counted)" if unknown else ""),
        steps=tuple(map(_step, estimates)),
    )


def _summary(total: float | None, late: list[StepEstimate]) -> str:
    if not late:
        return f"about {format_duration(total or 0.0)}"
    steps = " and ".join(str(each.number) for each in late)
    noun = "step" if len(late) == 1 else "steps"
    return f"it would pause for a person in {noun} {steps}"


def _step(estimate: StepEstimate) -> StepTime:
    return StepTime(
        estimate.number,
        estimate.weight_bp,
        estimate.expected_s,
        estimate.is_in_time,
        describe_step(estimate),
    )


def describe_step(estimate: StepEstimate) -> str:
    """Return the expected time of a step, its cause, and what happens if it is too long."""
    slowest = estimate.needs[0] if estimate.needs else None
    if slowest is not None and math.isinf(slowest.answers):
        return (
            f"{slowest.check} can never pass here: the step pauses for a person after its bake time"
        )
    waits = f"it waits {format_duration(estimate.limit_s)}, then pauses for a person"
    if estimate.expected_s is None:
        return f"it can never pass at this traffic: {waits}"
    time = f"about {format_duration(estimate.expected_s)}"
    if slowest is None or slowest.seconds <= estimate.bake_s:
        return f"{time}: its bake time"
    summary = f"{time}: {slowest.check} needs about {slowest.answers:,.0f} canary responses"
    return summary if estimate.is_in_time else f"{summary}; {waits}"


def traffic_of(model: RegisteredModel, now: datetime, reach: timedelta) -> UsualTraffic | None:
    """Return the traffic within `reach` from its first request on; None without requests."""
    rows = TelemetryRow.objects.filter(model_name=model.name, ended_at__gt=now - reach)
    first = rows.order_by("ended_at").values_list("started_at", flat=True).first()
    if first is None:
        return None
    span_s = max(SPAN_MIN_S, (now - max(first, now - reach)).total_seconds())
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
    recent_rows = TelemetryRow.objects.filter(model_name=model, ended_at__gt=now - HOUR).count()
    is_sampled = recent_rows * (reach / HOUR) > ROWS_MAX
    width, scale = ("1 minute", 60.0) if is_sampled else ("1 hour", 1.0)
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
