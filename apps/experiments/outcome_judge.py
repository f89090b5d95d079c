"""Judges a rollout's outcomes as an experiment judges a guardrail. Pure.

The estimate, what keeps it silent and the judgement of the margin are those of `stats`, with a
stratum for each step, since shares differ between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import reduce

import msgspec

from apps.experiments.gather import OTHER_LEVELS
from apps.experiments.stats import estimates
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import State
from apps.experiments.stats.data import ArmData, MetricData
from apps.experiments.stats.estimates import Estimate
from apps.experiments.stats.margins import MarginVerdict, judge_margin
from apps.experiments.stats.sequential import PLANNED_UNITS_DEFAULT
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.observed import Observed
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

CANARY, CONTROL = "canary", "control"
# Of each side in a step: fewer have no spread to judge by.
UNITS_MIN = 2
# More units than this are never missing in words.
MISSING_MAX = 1e9


@dataclass(frozen=True)
class _Judged:
    """What the canary's comparison with control came to, at the levels of a pass and of a fail.

    `gain` is how much better the canary is, in the metric's unit, None where it is not estimated;
    `least_loss` how much worse it is at least, at the level of a fail, None without a bound.
    """

    made: Estimate
    to_pass: MarginVerdict
    to_fail: MarginVerdict
    least_loss: float | None
    gain: float | None


def judge_outcome(check: CheckDocument, seen: Observed, settings: CheckSettings) -> CheckResult:
    """Pass above −margin, fail below it, by bounds that hold at every look; else not decided.

    A pass is read at one-sided `alpha_promote`, a failure at `alpha` over the guardrails.
    """
    name, margin = check.setting("metric"), float(check.setting("margin"))
    why = _nothing_in(seen)
    if why:
        return CheckResult(check.label, Verdict.NO_DATA, f"{name}: {why}", _left_out(seen))
    stored = msgspec.convert(seen["data"], MetricData)
    metric, steps = _comparable(replace(stored, spec=replace(stored.spec, margin=margin)))
    judged = _judge(metric, settings)
    verdict, why = _decide(judged, margin, _n(metric, CANARY))
    record = {**_record(metric, judged, margin), "steps": list(steps), **_left_out(seen)}
    told = _told(metric, judged, margin, steps, seen)
    return CheckResult(check.label, verdict, f"{told}: {why}", record)


def _nothing_in(seen: Observed) -> str:
    """Return in words why there is nothing to judge, or nothing."""
    if "data" not in seen:
        return str(seen.get("nothing") or "no unit of the canary has an outcome yet")
    metric = msgspec.convert(seen["data"], MetricData)
    units = int(seen["exposed"]["canary"])
    if _n(metric, CANARY):
        return ""
    if not units:
        return "no unit met the canary alone yet"
    if seen["window_s"]:
        window = timedelta(seconds=int(seen["window_s"]))
        return f"no outcome counts yet of the canary's {units} units, each of which has {window}"
    if metric.spec.kind == "quantile":
        return f"no unit that met the canary in step {seen['until_step'] + 1} has an outcome yet"
    return f"none of the canary's {units} units has an outcome yet"


def _n(metric: MetricData, side: str) -> int:
    """Return how many units of a side have a value."""
    arm = metric.arms.get(side)
    if arm is None:
        return 0
    if metric.spec.kind == "quantile":
        return arm.order.n if arm.order else 0
    return arm.comoments.n


def _comparable(metric: MetricData) -> tuple[MetricData, tuple[int, ...]]:
    """Return the units of the steps in which both sides have some, and those steps.

    Other units have nothing to be compared with: shares differ between steps, so that they are
    never put to those of another step.
    """
    if metric.spec.kind == "quantile":
        return metric, ()
    sides = [metric.arms.get(side) for side in (CONTROL, CANARY)]
    strata = [side.strata if side else {} for side in sides]
    used = [
        level
        for level in sorted({*strata[0]} & {*strata[1]} - {OTHER_LEVELS}, key=int)
        if min(each[level].n for each in strata) >= UNITS_MIN
    ]
    empty = Comoments.empty(metric.spec.width)
    arms = {
        side: ArmData(
            reduce(Comoments.merge, (each[level] for level in used), empty),
            strata={level: each[level] for level in used},
        )
        for side, each in zip((CONTROL, CANARY), strata, strict=True)
    }
    return replace(metric, arms=arms), tuple(int(level) for level in used)


def _judge(metric: MetricData, settings: CheckSettings) -> _Judged:
    made = estimates.of_arms(metric, CONTROL, CANARY)
    known = made.found.state in (State.OK, State.NO_VARIANCE)
    better = metric.spec.is_increase_better
    alpha_fail = settings.alpha / settings.guardrails
    # What bounds the loss from below is what bounds the gain from above.
    turned = replace(metric, spec=replace(metric.spec, is_increase_better=not better))
    return _Judged(
        made,
        to_pass=_margin_verdict(metric, made, settings.alpha_promote),
        to_fail=_margin_verdict(metric, made, alpha_fail),
        least_loss=_margin_verdict(turned, made, alpha_fail).bound,
        gain=made.found.difference * (1.0 if better else -1.0) if known else None,
    )


def _margin_verdict(metric: MetricData, made: Estimate, alpha: float) -> MarginVerdict:
    verdict = judge_margin(
        metric.spec,
        made,
        estimates.rare_events(metric, CONTROL, CANARY),
        alpha=alpha,
        planned_units=PLANNED_UNITS_DEFAULT,
        is_final=False,
        is_worse=False,
        stopped="",
    )
    assert verdict is not None  # the check has a margin
    return verdict


def _decide(judged: _Judged, margin: float, canary_n: int) -> tuple[Verdict, str]:
    low, loss = judged.to_pass.bound, judged.least_loss
    if judged.to_fail.state == "worse":
        by = f", by {loss:.3g} at least" if loss is not None and loss > margin else ""
        return Verdict.FAIL, f"proven worse by more than the margin{by}"
    if judged.to_pass.state == "not-worse":
        by = f", by {max(0.0, -low):.3g} at most" if low is not None and low > -margin else ""
        return Verdict.PASS, f"proven not worse by the margin{by}"
    if judged.made.found.state is State.INVALID_DATA:
        return Verdict.PROVIDER_ERROR, judged.made.found.reason
    if low is None or loss is None:
        return Verdict.INSUFFICIENT_SAMPLE, judged.to_pass.reason
    bounds = f"better by {low:.3g} to {-loss:.3g}"
    if judged.gain is not None and judged.gain < -margin:
        missing = _missing(canary_n, -loss - judged.gain, -margin - judged.gain)
        return Verdict.INCONCLUSIVE, f"worse than the margin, but not proven ({bounds}){missing}"
    missing = (
        "" if judged.gain is None else _missing(canary_n, judged.gain - low, judged.gain + margin)
    )
    return Verdict.INSUFFICIENT_SAMPLE, f"too few to tell ({bounds}){missing}"


def _missing(n: int, reach: float, distance: float) -> str:
    """Say about how many units of the canary decide if the difference stays: bounds narrow as √n.

    `reach` is how far the bound lies from the difference, `distance` how far the margin does.
    """
    if not 0.0 < distance < reach:
        return ""
    needed = n * (reach / distance) ** 2
    return (
        f"; about {needed:,.0f} units of the canary decide it if that stays"
        if needed < MISSING_MAX
        else ""
    )


def _told(
    metric: MetricData, judged: _Judged, margin: float, steps: Sequence[int], seen: Observed
) -> str:
    canary, control = (
        "–" if value is None else f"{value:.4g}"
        for value in (_value(metric, side) for side in (CANARY, CONTROL))
    )
    of = ""
    if metric.spec.kind == "quantile":
        of = f" of the units first met in step {seen['until_step'] + 1}"
    elif len(steps) > 1 and judged.gain is not None:
        of = f" ({judged.made.found.difference:+.3g} within {len(steps)} steps)"
    n = f"n={_n(metric, CANARY)} vs {_n(metric, CONTROL)}"
    return f"{seen['metric']} {canary} vs stable {control}{of}, margin {margin:g}, {n}"


def _value(metric: MetricData, side: str) -> float | None:
    arm = metric.arms.get(side)
    return estimates.value_of(metric.spec, arm) if arm else None


def _record(metric: MetricData, judged: _Judged, margin: float) -> dict[str, JSON]:
    return {
        "n": _n(metric, CANARY),
        "canary_n": _n(metric, CANARY),
        "canary_mean": _value(metric, CANARY),
        "control_n": _n(metric, CONTROL),
        "control_mean": _value(metric, CONTROL),
        "better_by": judged.gain,
        "low": judged.to_pass.bound,
        "high": None if judged.least_loss is None else -judged.least_loss,
        "margin": margin,
        "test": judged.made.found.test,
        "standard_error": judged.made.found.standard_error,
    }


def _left_out(seen: Observed) -> dict[str, JSON]:
    return {name: seen.get(name) for name in ("exposed", "met_both", "leaving", "until_step")}
